"""`reft bench`: a load tester for OpenAI-compatible servers that also checks the answers.

The path of a run:

    command.run_bench       options (arguments, options), the server's tokenizer (vocabulary), what will be sent (plan)
    measurement.measure     references (verification), then the load; `sweep` does this once per rate
    worker.run_job          one process's share, with the monitor of its own health; `processes` starts several
    load.Load               closed or open loop: when each session goes
    bodies.request_body     a turn's JSON
    sender.Sender.send      the request and its stream (answers), noted in a RequestRecord (records)
    document                every figure (summary, statistics, slo) as one JSON document
    tables, page, compare   what people see of it; `live` is what they see meanwhile
"""
