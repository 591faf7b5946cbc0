"""ReFT beside LoRA, prefix tuning and prompt tuning: same base model, data, batches and loss.

python -m benchmarks.methods.tasks --output-dir build/methods      # fetch the data
python -m benchmarks.methods.run --data-dir build/methods          # train and score; continues where it stopped
python -m benchmarks.methods.report                                # write docs/interventions.md's tables and plot
"""
