/* What a step consists of: its data, and the tasks of each phase. */

#ifndef REFT_STAGES_H
#define REFT_STAGES_H

#include "attention.h"
#include "product.h"
#include "threads.h"

enum { EMBED = 1, ADD = 2, NORM = 4 };
enum { ROWS_PER_TASK = 8 };

struct layer {
    const float *input_norm, *query_norm, *key_norm, *mlp_norm; /* query_norm and key_norm may be NULL */
    struct linear qkv, attention_output, gate_up, down;
    int64_t sliding_window; /* 0 = none */
};

struct config {
    int64_t num_layers, hidden_size, intermediate_size;
    struct attention_shape attention;
    float epsilon;
    const float *embedding;    /* [vocab_size][hidden_size], or NULL: the head's weights */
    const float *cosine, *sine; /* [positions][head_dim / 2] */
    const float *final_norm;
    struct linear head;
    const struct layer *layers;
};

/* One step. Tensors are row-major; `heads` is the fused q, k and v. */
struct step {
    int64_t num_tokens, num_spans, num_sampled;
    const int64_t *token_ids, *sampled_rows;
    const struct span *spans;
    float *hidden, *inputs, *branch; /* [num_tokens][hidden_size] */
    float *heads;                    /* [num_tokens][num_heads + 2 * num_kv_heads][head_dim] */
    float *attended;                 /* [num_tokens][num_heads][head_dim] */
    float *gated;                    /* [num_tokens][intermediate_size] */
    float *up;                       /* the same; NULL where no stage ends at the activation */
    float *logits;                   /* [num_sampled][vocab_size] */
};

struct model {
    struct config config;
    struct pool pool;
    struct phase *program;
    const struct step *step;
    const struct span **row_spans; /* [num_tokens] */
    int64_t rows_capacity;
    struct tiling {
        int64_t window, num_tiles;
        struct tile *tiles;
        struct member *members;
        int64_t capacity;
    } tilings[2]; /* layers with a sliding window, and layers without */
    float **scratch; /* one for each thread */
    size_t scratch_floats;
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t qkv_size(const struct attention_shape *shape) {
    return (shape->num_heads + 2 * shape->num_kv_heads) * shape->head_dim;
}

/* out = x / sqrt(mean(x^2) + epsilon) * weight. `out` may be `x`. */
static void rms_norm(const float *x, const float *weight, int64_t size, float epsilon, float *out) {
    vector squares = {0};
    float sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
    for (; i < size; i++) sum += x[i] * x[i];
    for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
    float factor = 1.0f / sqrtf(sum / (float)size + epsilon);
    for (i = 0; i < size; i++) out[i] = x[i] * factor * weight[i];
}

/* (a, b) -> (a cos - b sin, b cos + a sin), for the halves a and b of a head. */
static void rotate(const float *cosine, const float *sine, int64_t half, float *head) {
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

static void embed(const struct config *config, int64_t token, float *out) {
    if (config->embedding) {
        memcpy(out, config->embedding + token * config->hidden_size, config->hidden_size * sizeof *out);
        return;
    }
    const struct linear *head = &config->head;
    size_t first = (size_t)(token / PANEL_COLUMNS) * head->inputs * PANEL_COLUMNS + token % PANEL_COLUMNS;
    for (int64_t i = 0; i < config->hidden_size; i++) {
        size_t index = first + i * PANEL_COLUMNS;
        if (head->weight_type == FLOAT32) {
            out[i] = ((const float *)head->panels)[index];
        } else if (head->weight_type == BFLOAT16) {
            uint32_t bits = (uint32_t)((const uint16_t *)head->panels)[index] << 16;
            memcpy(out + i, &bits, sizeof bits);
        } else {
            out[i] = ((const int8_t *)head->panels)[index] * head->scale[token];
        }
    }
}

/* Flags say what: embed, add the branch, norm with the weight in `argument`. */
static void rows_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct model *model = context;
    const struct step *step = model->step;
    int64_t size = model->config.hidden_size, last = smaller((task + 1) * ROWS_PER_TASK, step->num_tokens);
    for (int64_t row = task * ROWS_PER_TASK; row < last; row++) {
        float *hidden = step->hidden + row * size;
        if (phase->flags & EMBED) embed(&model->config, step->token_ids[row], hidden);
        if (phase->flags & ADD)
            for (int64_t i = 0; i < size; i++) hidden[i] += step->branch[row * size + i];
        if (phase->flags & NORM)
            rms_norm(hidden, phase->argument, size, model->config.epsilon, step->inputs + row * size);
    }
}

static void sampled_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct model *model = context;
    const struct step *step = model->step;
    int64_t size = model->config.hidden_size;
    rms_norm(step->hidden + step->sampled_rows[task] * size, phase->argument, size, model->config.epsilon,
             step->inputs + task * size);
}

/* Norm and rotate q and k, and write k and v to the cache. */
static void rotate_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct model *model = context;
    const struct step *step = model->step;
    const struct layer *layer = &model->config.layers[phase->layer];
    const struct attention_shape *shape = &model->config.attention;
    int64_t dim = shape->head_dim, last = smaller((task + 1) * ROWS_PER_TASK, step->num_tokens);
    for (int64_t row = task * ROWS_PER_TASK; row < last; row++) {
        const struct span *span = model->row_spans[row];
        int64_t position = span->first_position + row - span->first_token;
        const float *cosine = model->config.cosine + position * dim / 2;
        const float *sine = model->config.sine + position * dim / 2;
        float *heads = step->heads + row * qkv_size(shape);
        for (int64_t h = 0; h < shape->num_heads + shape->num_kv_heads; h++) {
            const float *norm = h < shape->num_heads ? layer->query_norm : layer->key_norm;
            if (norm) rms_norm(heads + h * dim, norm, dim, model->config.epsilon, heads + h * dim);
            rotate(cosine, sine, dim / 2, heads + h * dim);
        }
        for (int64_t side = 0; side < 2; side++)
            for (int64_t h = 0; h < shape->num_kv_heads; h++) {
                const float *from = heads + (shape->num_heads + side * shape->num_kv_heads + h) * dim;
                float *to = segment_data(shape, &span->own, phase->layer, side, h);
                memcpy(to + (position - span->num_shared) * dim, from, dim * sizeof *to);
            }
    }
}

static const struct tiling *tiling_of(const struct model *model, uint32_t layer) {
    return &model->tilings[model->config.layers[layer].sliding_window ? 0 : 1];
}

static void attend_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    const struct model *model = context;
    const struct attention_shape *shape = &model->config.attention;
    const struct tiling *tiling = tiling_of(model, phase->layer);
    attend_tile(shape, &tiling->tiles[task / shape->num_kv_heads], tiling->members, phase->layer,
                task % shape->num_kv_heads, tiling->window, model->step->heads, model->step->attended,
                model->scratch[thread]);
}

static void qkv_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->inputs, step->num_tokens, step->heads, NULL);
}

static void attention_output_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->attended, step->num_tokens, step->branch, NULL);
}

static void gate_up_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->inputs, step->num_tokens, step->gated, NULL);
}

/* The activation and `up` apart, for a caller that changes the activation. */
static void activation_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->inputs, step->num_tokens, step->gated, step->up);
}

static void multiply_up_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)phase, (void)thread;
    const struct model *model = context;
    const struct step *step = model->step;
    int64_t size = model->config.intermediate_size;
    int64_t last = smaller((task + 1) * ROWS_PER_TASK, step->num_tokens) * size;
    for (int64_t i = task * ROWS_PER_TASK * size; i < last; i++) step->gated[i] *= step->up[i];
}

static void down_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->gated, step->num_tokens, step->branch, NULL);
}

static void head_task(void *context, const struct phase *phase, uint32_t task, uint32_t thread) {
    (void)thread;
    const struct step *step = ((const struct model *)context)->step;
    product_task(phase->argument, task, phase->num_tasks, step->inputs, step->num_sampled, step->logits, NULL);
}

#endif
