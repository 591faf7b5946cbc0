/* Products with frozen weights, stored in panels: out[row][column] = sum over k of x[row][k] * weight[column][k].

   A panel holds PANEL_COLUMNS columns: [inputs][PANEL_COLUMNS]. Every sum runs over k in order, one fused multiply-add
   at a time, whatever the number of rows: a row's result is the same bit for bit alone and in any company. */

#ifndef REFT_PRODUCT_H
#define REFT_PRODUCT_H

#include "vectors.h"

enum weight_type { FLOAT32, BFLOAT16, INT8, NUM_WEIGHT_TYPES };

struct linear {
    const void *panels;
    const float *scale; /* [outputs], int8 only: the weight is stored / scale */
    const float *bias;  /* [outputs] or NULL */
    int64_t inputs, outputs;
    int64_t weight_type;
    int64_t is_gated; /* a panel holds LANES columns of gate, then the same of up; the result is silu(gate) * up */
};

INLINE int64_t panel_outputs(const struct linear *linear) {
    return linear->is_gated ? PANEL_COLUMNS / 2 : PANEL_COLUMNS;
}

INLINE int64_t num_panels(const struct linear *linear) {
    return (linear->outputs + panel_outputs(linear) - 1) / panel_outputs(linear);
}

INLINE size_t weight_bytes(enum weight_type type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

INLINE vector load_weights(enum weight_type type, const void *panel, size_t index) {
    if (type == FLOAT32) return load((const float *)panel + index);
    if (type == BFLOAT16) {
        half_vector stored;
        memcpy(&stored, (const uint16_t *)panel + index, sizeof stored);
        return (vector)(__builtin_convertvector(stored, int_vector) << 16);
    }
    return __builtin_convertvector(load_bytes((const int8_t *)panel + index), vector);
}

/* The sums of `rows` rows and one panel, into tile[rows][PANEL_COLUMNS]. */
INLINE void product_tile(
    enum weight_type type, const int rows, const float *x, size_t row_stride, size_t depth, const void *panel,
    float *tile) {
    vector sums[TILE_ROWS][PANEL_VECTORS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) sums[row][v] = (vector){0};
    for (size_t k = 0; k < depth; k++) {
        vector weights[PANEL_VECTORS];
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            weights[v] = load_weights(type, panel, k * PANEL_COLUMNS + v * LANES);
        UNROLL for (int row = 0; row < rows; row++) {
            vector value = broadcast(x[row * row_stride + k]);
            UNROLL for (int v = 0; v < PANEL_VECTORS; v++) sums[row][v] += value * weights[v];
        }
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) store(tile + row * PANEL_COLUMNS + v * LANES, sums[row][v]);
}

typedef void (*tile_function)(const float *x, size_t row_stride, size_t depth, const void *panel, float *tile);

#define DEFINE_TILE(TYPE, ROWS)                                                                               \
    static void product_tile_##TYPE##_##ROWS(                                                                 \
        const float *x, size_t row_stride, size_t depth, const void *panel, float *tile) {                    \
        product_tile(TYPE, ROWS, x, row_stride, depth, panel, tile);                                          \
    }
#define DEFINE_SIX_TILES(TYPE)                                                                                \
    DEFINE_TILE(TYPE, 1) DEFINE_TILE(TYPE, 2) DEFINE_TILE(TYPE, 3)                                            \
    DEFINE_TILE(TYPE, 4) DEFINE_TILE(TYPE, 5) DEFINE_TILE(TYPE, 6)
#define SIX_TILES(TYPE)                                                                                       \
    product_tile_##TYPE##_1, product_tile_##TYPE##_2, product_tile_##TYPE##_3, product_tile_##TYPE##_4,       \
        product_tile_##TYPE##_5, product_tile_##TYPE##_6
#if TILE_ROWS == 12
#define DEFINE_TILES(TYPE)                                                                                    \
    DEFINE_SIX_TILES(TYPE)                                                                                    \
    DEFINE_TILE(TYPE, 7) DEFINE_TILE(TYPE, 8) DEFINE_TILE(TYPE, 9)                                            \
    DEFINE_TILE(TYPE, 10) DEFINE_TILE(TYPE, 11) DEFINE_TILE(TYPE, 12)
#define TILES(TYPE)                                                                                           \
    SIX_TILES(TYPE), product_tile_##TYPE##_7, product_tile_##TYPE##_8, product_tile_##TYPE##_9,               \
        product_tile_##TYPE##_10, product_tile_##TYPE##_11, product_tile_##TYPE##_12
#else
#define DEFINE_TILES(TYPE) DEFINE_SIX_TILES(TYPE)
#define TILES(TYPE) SIX_TILES(TYPE)
#endif

DEFINE_TILES(FLOAT32)
DEFINE_TILES(BFLOAT16)
DEFINE_TILES(INT8)

static const tile_function product_tiles[NUM_WEIGHT_TYPES][TILE_ROWS] = {
    {TILES(FLOAT32)}, {TILES(BFLOAT16)}, {TILES(INT8)}};

/* tile * scale + bias, the first `columns` of it, to `out`. */
static void write_columns(float *tile, const float *scale, const float *bias, int64_t columns, float *out) {
    if (scale)
        for (int64_t c = 0; c < columns; c++) tile[c] *= scale[c];
    if (bias)
        for (int64_t c = 0; c < columns; c++) tile[c] += bias[c];
    memcpy(out, tile, (size_t)columns * sizeof *out);
}

/* silu(gate) * up; or, where `out_up` is one, silu(gate) to `out` and up to it. Scale and bias are laid out as the panel
   is: PANEL_COLUMNS a panel. */
static void write_gated(
    float *tile, const float *scale, const float *bias, int64_t columns, float *out, float *out_up) {
    float gated[PANEL_COLUMNS / 2];
    for (int c = 0; c < PANEL_COLUMNS; c++) tile[c] = tile[c] * (scale ? scale[c] : 1.0f) + (bias ? bias[c] : 0.0f);
    UNROLL for (int v = 0; v < PANEL_VECTORS / 2; v++) {
        vector gate = load(tile + v * LANES), up = load(tile + PANEL_COLUMNS / 2 + v * LANES);
        vector activation = gate / (exponential(-gate) + 1.0f);
        store(gated + v * LANES, out_up ? activation : activation * up);
    }
    memcpy(out, gated, (size_t)columns * sizeof *out);
    if (out_up) memcpy(out_up, tile + PANEL_COLUMNS / 2, (size_t)columns * sizeof *out_up);
}

/* Rows [first, last) of the product with one panel. Output rows are `linear->outputs` apart. `out_up` may be NULL. */
static void multiply_panel(
    const struct linear *linear, int64_t panel, const float *x, int64_t first, int64_t last, float *out,
    float *out_up) {
    float tile[TILE_ROWS * PANEL_COLUMNS];
    int64_t width = panel_outputs(linear), column = panel * width;
    int64_t columns = linear->outputs - column < width ? linear->outputs - column : width;
    size_t panel_bytes = (size_t)linear->inputs * PANEL_COLUMNS * weight_bytes(linear->weight_type);
    const char *weights = (const char *)linear->panels + (size_t)panel * panel_bytes;
    const float *scale = linear->scale ? linear->scale + panel * PANEL_COLUMNS : NULL;
    const float *bias = linear->bias ? linear->bias + panel * PANEL_COLUMNS : NULL;
    for (int64_t blocks = (last - first + TILE_ROWS - 1) / TILE_ROWS; blocks > 0; blocks--) {
        int64_t rows = (last - first + blocks - 1) / blocks;
        product_tiles[linear->weight_type][rows - 1](
            x + first * linear->inputs, linear->inputs, linear->inputs, weights, tile);
        for (int64_t row = 0; row < rows; row++) {
            int64_t offset = (first + row) * linear->outputs + column;
            float *sums = tile + row * PANEL_COLUMNS;
            if (linear->is_gated)
                write_gated(sums, scale, bias, columns, out + offset, out_up ? out_up + offset : NULL);
            else
                write_columns(sums, scale, bias, columns, out + offset);
        }
        first += rows;
    }
}

/* Rows of one task: as many as stay in the second-level cache next to a panel. */
INLINE int64_t rows_per_task(const struct linear *linear) {
    int64_t rows = (384 << 10) / (4 * linear->inputs) / TILE_ROWS * TILE_ROWS;
    return rows < 2 * TILE_ROWS ? 2 * TILE_ROWS : rows;
}

/* Few rows: each task is a run of panels one after the other, because a core reads weights fastest in the order of
   their addresses; two runs for each thread, should one lose its core. Many rows: each task is one panel and a block
   of rows. */
INLINE int64_t product_num_tasks(const struct linear *linear, int64_t num_rows, int64_t num_threads) {
    int64_t panels = num_panels(linear);
    if (num_rows <= TILE_ROWS) return panels < 2 * num_threads ? panels : 2 * num_threads;
    return panels * ((num_rows + rows_per_task(linear) - 1) / rows_per_task(linear));
}

/* `out_up` is NULL, or takes what a gated product would multiply by. */
static void product_task(
    const struct linear *linear, int64_t task, int64_t num_tasks, const float *x, int64_t num_rows, float *out,
    float *out_up) {
    int64_t panels = num_panels(linear);
    if (num_rows <= TILE_ROWS) {
        for (int64_t panel = task * panels / num_tasks; panel < (task + 1) * panels / num_tasks; panel++)
            multiply_panel(linear, panel, x, 0, num_rows, out, out_up);
        return;
    }
    int64_t first = task / panels * rows_per_task(linear), last = first + rows_per_task(linear);
    multiply_panel(linear, task % panels, x, first, last < num_rows ? last : num_rows, out, out_up);
}

#endif
