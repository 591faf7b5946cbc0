/* The decoder stack of the Llama shape on a CPU: embedding, layers, norm and head, over a step's flat batch.

   A step is a sequence of stages, and reft_run runs any consecutive ones, so that the caller can change the tensors
   between two of them:

     0              hidden = embedding[token]
     1 + 9 l        inputs = norm(hidden)
     2 + 9 l        heads = q, k and v of inputs
     3 + 9 l        attended = attention of heads, with this step's K and V written to the cache
     4 + 9 l        branch = output product of attended
     5 + 9 l        hidden += branch; inputs = norm(hidden)
     6 + 9 l        gated = silu(gate of inputs), up = up of inputs
     7 + 9 l        gated *= up; in one go with the stage before where both are run at once
     8 + 9 l        branch = down product of gated
     9 + 9 l        hidden += branch
     1 + 9 layers   logits = head(norm(hidden)), of the sampled rows */

#include "stages.h"

#define EXPORT __attribute__((visibility("default")))

enum { STAGES_PER_LAYER = 9, MOST_PHASES_PER_LAYER = 8 };

struct program {
    struct phase *phases;
    uint32_t length;
};

static void append(
    struct program *program, task_function run, int64_t num_tasks, uint32_t layer, const void *argument) {
    if (num_tasks) program->phases[program->length++] = (struct phase){run, num_tasks, layer, argument, 0};
}

/* Row-wise work is joined with the row-wise phase before it, unless both norm. */
static void append_rows(struct program *program, int64_t num_rows, uint32_t flags, const void *norm) {
    struct phase *previous = program->length ? &program->phases[program->length - 1] : NULL;
    if (!previous || previous->run != rows_task || (previous->flags & NORM)) {
        append(program, rows_task, (num_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, 0, NULL);
        previous = &program->phases[program->length - 1];
    }
    previous->flags |= flags;
    if (flags & NORM) previous->argument = norm;
}

/* In one go with the products before, unless the caller may have changed the activation since. */
static void append_multiply_up(struct program *program, int64_t num_rows) {
    struct phase *previous = program->length ? &program->phases[program->length - 1] : NULL;
    if (previous && previous->run == activation_task)
        previous->run = gate_up_task;
    else
        append(program, multiply_up_task, (num_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, 0, NULL);
}

static void append_stage(struct program *program, const struct model *model, int64_t stage) {
    const struct config *config = &model->config;
    const struct step *step = model->step;
    int64_t num_rows = step->num_tokens, index = (stage - 1) / STAGES_PER_LAYER;
    int64_t num_threads = model->pool.num_threads;
    if (stage == 0) {
        append_rows(program, num_rows, EMBED, NULL);
        return;
    }
    if (index == config->num_layers) {
        append(program, sampled_task, step->num_sampled, 0, config->final_norm);
        append(program, head_task, product_num_tasks(&config->head, step->num_sampled, num_threads), 0, &config->head);
        return;
    }
    const struct layer *layer = &config->layers[index];
    switch ((stage - 1) % STAGES_PER_LAYER) {
    case 0:
        append_rows(program, num_rows, NORM, layer->input_norm);
        break;
    case 1:
        append(program, qkv_task, product_num_tasks(&layer->qkv, num_rows, num_threads), index, &layer->qkv);
        break;
    case 2:
        append(program, rotate_task, (num_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, index, NULL);
        append(program, attend_task, tiling_of(model, index)->num_tiles * config->attention.num_kv_heads, index, NULL);
        break;
    case 3:
        append(program, attention_output_task, product_num_tasks(&layer->attention_output, num_rows, num_threads), index,
               &layer->attention_output);
        break;
    case 4:
        append_rows(program, num_rows, ADD, NULL);
        append_rows(program, num_rows, NORM, layer->mlp_norm);
        break;
    case 5:
        append(program, activation_task, product_num_tasks(&layer->gate_up, num_rows, num_threads), index, &layer->gate_up);
        break;
    case 6:
        append_multiply_up(program, num_rows);
        break;
    case 7:
        append(program, down_task, product_num_tasks(&layer->down, num_rows, num_threads), index, &layer->down);
        break;
    default:
        append_rows(program, num_rows, ADD, NULL);
    }
}

/* Room for at least `count` items; what is there may be lost. False if there is no memory. */
static bool reserve(void **items, int64_t *capacity, int64_t count, size_t item_bytes) {
    if (count <= *capacity) return true;
    void *larger = malloc((size_t)count * 2 * item_bytes);
    if (!larger) return false;
    free(*items);
    *items = larger;
    *capacity = count * 2;
    return true;
}

static int larger_tile_first(const void *a, const void *b) {
    int64_t x = ((const struct tile *)a)->num_scores, y = ((const struct tile *)b)->num_scores;
    return (x < y) - (x > y);
}

static bool prepare_tiling(struct model *model, struct tiling *tiling) {
    const struct step *step = model->step;
    int64_t most = most_tiles(&model->config.attention, step->num_tokens, step->num_spans), capacity = tiling->capacity;
    if (!reserve((void **)&tiling->tiles, &capacity, most, sizeof(struct tile))) return false;
    if (!reserve((void **)&tiling->members, &tiling->capacity, most, sizeof(struct member))) {
        tiling->capacity = 0;
        return false;
    }
    tiling->num_tiles = make_tiles(
        &model->config.attention, step->spans, step->num_spans, tiling->window, tiling->tiles, tiling->members);
    qsort(tiling->tiles, tiling->num_tiles, sizeof *tiling->tiles, larger_tile_first);
    return true;
}

static bool reserve_scratch(struct model *model) {
    size_t most = 0;
    for (int i = 0; i < 2; i++)
        if (model->tilings[i].num_tiles && (size_t)model->tilings[i].tiles[0].num_scores > most)
            most = model->tilings[i].tiles[0].num_scores;
    most += 2 * lane_state_floats(&model->config.attention);
    if (most <= model->scratch_floats) return true;
    model->scratch_floats = 0;
    for (uint32_t thread = 0; thread < model->pool.num_threads; thread++) {
        free(model->scratch[thread]);
        model->scratch[thread] = malloc(most * 2 * sizeof(float));
        if (!model->scratch[thread]) return false;
    }
    model->scratch_floats = most * 2;
    return true;
}

/* Lay a step out. Returns 0, or -1 when there is no memory. */
EXPORT int reft_begin(struct model *model, const struct step *step) {
    model->step = step;
    if (!reserve((void **)&model->row_spans, &model->rows_capacity, step->num_tokens, sizeof *model->row_spans))
        return -1;
    for (const struct span *span = step->spans; span < step->spans + step->num_spans; span++)
        for (int64_t i = 0; i < span->num_tokens; i++) model->row_spans[span->first_token + i] = span;
    for (int64_t layer = 0; layer < model->config.num_layers; layer++) {
        struct tiling *tiling = (struct tiling *)tiling_of(model, layer);
        tiling->window = model->config.layers[layer].sliding_window;
        tiling->num_tiles = -1;
    }
    for (int i = 0; i < 2; i++)
        if (model->tilings[i].num_tiles == -1 && !prepare_tiling(model, &model->tilings[i])) return -1;
    return reserve_scratch(model) ? 0 : -1;
}

/* Run stages [first, last) of the step that reft_begin laid out. */
EXPORT void reft_run(struct model *model, int64_t first, int64_t last) {
    struct program program = {model->program, 0};
    for (int64_t stage = first; stage < last; stage++) append_stage(&program, model, stage);
    pool_run(&model->pool, program.phases, program.length, model);
}

EXPORT void reft_destroy(struct model *model) {
    if (!model) return;
    if (model->pool.workers) pool_stop(&model->pool);
    for (uint32_t thread = 0; model->scratch && thread < model->pool.num_threads; thread++)
        free(model->scratch[thread]);
    for (int i = 0; i < 2; i++) {
        free(model->tilings[i].tiles);
        free(model->tilings[i].members);
    }
    free(model->scratch);
    free(model->program);
    free(model->row_spans);
    free(model);
}

/* A model over weights that the caller keeps alive; NULL when there is no memory. All layers with a sliding window
   have the same one. */
EXPORT struct model *reft_create(const struct config *config, int64_t num_threads) {
    struct model *model = calloc(1, sizeof *model);
    if (!model) return NULL;
    model->config = *config;
    model->program = calloc(4 + config->num_layers * MOST_PHASES_PER_LAYER, sizeof *model->program);
    model->scratch = calloc(num_threads, sizeof *model->scratch);
    if (!model->program || !model->scratch || !pool_start(&model->pool, num_threads)) {
        reft_destroy(model);
        return NULL;
    }
    return model;
}

/* What the caller must know about this build: floats of a vector, columns of a panel, sizes of the structures. */
EXPORT void reft_describe(int64_t *out) {
    out[0] = LANES;
    out[1] = PANEL_COLUMNS;
    out[2] = sizeof(struct linear);
    out[3] = sizeof(struct layer);
    out[4] = sizeof(struct config);
    out[5] = sizeof(struct span);
    out[6] = sizeof(struct step);
}

/* Single operations on the calling thread, for tests and for the check at start. */

EXPORT void reft_product(const struct linear *linear, const float *x, int64_t num_rows, float *out) {
    int64_t num_tasks = product_num_tasks(linear, num_rows, 1);
    for (int64_t task = 0; task < num_tasks; task++) product_task(linear, task, num_tasks, x, num_rows, out, NULL);
}

EXPORT void reft_exponential(const float *x, int64_t size, float *out) {
    for (int64_t i = 0; i + LANES <= size; i += LANES) store(out + i, exponential(load(x + i)));
}

EXPORT void reft_rms_norm(const float *x, const float *weight, int64_t size, float epsilon, float *out) {
    rms_norm(x, weight, size, epsilon, out);
}

EXPORT void reft_rotate(const float *cosine, const float *sine, int64_t half, float *head) {
    rotate(cosine, sine, half, head);
}

/* Attention of one layer; K and V are in the cache already. Returns 0, or -1 when there is no memory. */
EXPORT int reft_attend(
    const struct attention_shape *shape, const struct span *spans, int64_t num_spans, int64_t num_tokens,
    int64_t window, const float *heads, float *attended) {
    int64_t most = most_tiles(shape, num_tokens, num_spans), num_scores = 0;
    struct tile *tiles = malloc(most * sizeof *tiles);
    struct member *members = malloc(most * sizeof *members);
    int64_t num_tiles = tiles && members ? make_tiles(shape, spans, num_spans, window, tiles, members) : 0;
    for (int64_t i = 0; i < num_tiles; i++)
        if (tiles[i].num_scores > num_scores) num_scores = tiles[i].num_scores;
    float *scratch = malloc((2 * lane_state_floats(shape) + num_scores) * sizeof *scratch);
    bool is_ready = tiles && members && scratch;
    for (int64_t i = 0; is_ready && i < num_tiles * shape->num_kv_heads; i++)
        attend_tile(shape, &tiles[i / shape->num_kv_heads], members, 0, i % shape->num_kv_heads, window, heads,
                    attended, scratch);
    free(tiles);
    free(members);
    free(scratch);
    return is_ready ? 0 : -1;
}
