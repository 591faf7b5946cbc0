/* Attention of a step's queries to the KV cache: exact softmax, grouped query heads, causal, with a sliding window.

   A query's keys are a shared segment (a prefix that several sequences read in place) and then its sequence's own row.
   Queries are packed into tiles, one query in each lane of a vector; a tile of several sequences that share a prefix
   reads the prefix once. The scores of all keys are kept, so the softmax knows its true maximum: nothing is rescaled,
   and a result does not depend on where a segment ends. */

#ifndef REFT_ATTENTION_H
#define REFT_ATTENTION_H

#include "tiles.h"
#include "vectors.h"

/* Read rows [first, last) of a segment of `num_rows`, so that they are in the cache when they are needed. In the order
   of their addresses the processor streams them; in the order of the products, several rows at once, it does not. */
static void touch_rows(const float *segment, size_t first, size_t last, size_t num_rows, size_t dim) {
    const char *end = (const char *)(segment + (last < num_rows ? last : num_rows) * dim);
    for (const char *line = (const char *)(segment + first * dim); line < end; line += 64)
        (void)*(const volatile char *)line;
}

#define NARROW 8 /* up to this width a vector of values is multiplied, above it one of queries */

#define WIDTH 4
#define SUBLANES 4
#include "lanes.h"

#if LANES >= 8
#define WIDTH 8
#define SUBLANES 8
#else
#define WIDTH 8
#define SUBLANES 4
#endif
#include "lanes.h"

#define WIDTH 16
#define SUBLANES LANES
#include "lanes.h"

#if LANES == 16
#define WIDTH 32
#define SUBLANES LANES
#include "lanes.h"
#endif

struct lane_functions {
    int width;
    void (*score)(const float *query, const float *key, size_t num_keys, size_t dim, float *scores);
    void (*maximum)(const float *scores, size_t num_keys, float *largest);
    void (*weigh)(
        float *scores, const float *value, size_t num_keys, size_t dim, const float *largest, float *total, float *out);
};

static const struct lane_functions lane_functions[] = {
    {4, score_4, maximum_4, weigh_4},
    {8, score_8, maximum_8, weigh_8},
    {16, score_16, maximum_16, weigh_16},
#if MAX_WIDTH == 32
    {32, score_32, maximum_32, weigh_32},
#endif
};

INLINE const struct lane_functions *functions_for(int64_t num_queries) {
    const struct lane_functions *functions = lane_functions;
    while (functions->width < num_queries) functions++;
    return functions;
}

/* The state of up to MAX_WIDTH queries, in lanes; `query` is [head_dim][width], `out` too, or [width][head_dim] where
   the width is narrow. */
struct lane_state {
    float *query, *out;
    float largest[MAX_WIDTH], total[MAX_WIDTH];
    int64_t positions[MAX_WIDTH];
};

INLINE int64_t out_index(int width, int64_t dim, int64_t lane, int64_t d) {
    return width <= NARROW ? lane * dim + d : d * width + lane;
}

INLINE size_t lane_state_floats(const struct attention_shape *shape) { return 2 * MAX_WIDTH * shape->head_dim; }

static void load_queries(
    const struct attention_shape *shape, const struct member *member, int64_t kv_head, const float *heads, int lane,
    int width, struct lane_state *state) {
    int64_t group = query_group(shape), dim = shape->head_dim;
    int64_t row = (shape->num_heads + 2 * shape->num_kv_heads) * dim;
    for (int64_t i = 0; i < member->count; i++) {
        int64_t query = member->first + i;
        int64_t head = kv_head * group + query % group;
        const float *from = heads + (member->span->first_token + query / group) * row + head * dim;
        for (int64_t d = 0; d < dim; d++) state->query[d * width + lane + i] = from[d] * shape->scale;
        state->positions[lane + i] = query_position(shape, member, i);
        state->largest[lane + i] = -INFINITY;
    }
}

/* Unused lanes hold zeros, and the first query's position. */
static void clear_lanes(const struct attention_shape *shape, int first, int width, struct lane_state *state) {
    for (int lane = first; lane < width; lane++) {
        for (int64_t d = 0; d < shape->head_dim; d++) state->query[d * width + lane] = 0.0f;
        state->positions[lane] = state->positions[0];
        state->largest[lane] = -INFINITY;
    }
}

/* Hide keys [first, last), numbered by absolute position, that are later than a query or outside of its window. */
static void hide_keys(
    const struct lane_state *state, int width, int64_t first, int64_t last, int64_t window, float *scores) {
    int64_t earliest = state->positions[0], latest = earliest;
    for (int lane = 1; lane < width; lane++) {
        if (state->positions[lane] < earliest) earliest = state->positions[lane];
        if (state->positions[lane] > latest) latest = state->positions[lane];
    }
    for (int64_t key = earliest + 1 > first ? earliest + 1 : first; key < last; key++)
        for (int lane = 0; lane < width; lane++)
            if (key > state->positions[lane]) scores[(key - first) * width + lane] = -INFINITY;
    for (int64_t key = first; window && key <= latest - window && key < last; key++)
        for (int lane = 0; lane < width; lane++)
            if (key <= state->positions[lane] - window) scores[(key - first) * width + lane] = -INFINITY;
}

/* Scores of one segment's keys [first, last); `offset` is the absolute position of its first row. */
static void score_segment(
    const struct attention_shape *shape, const struct segment *segment, int64_t layer, int64_t kv_head, int64_t first,
    int64_t last, int64_t offset, int64_t window, const struct lane_functions *lanes, struct lane_state *state,
    float *scores) {
    const float *keys = segment_data(shape, segment, layer, false, kv_head) + first * shape->head_dim;
    lanes->score(state->query, keys, last - first, shape->head_dim, scores);
    hide_keys(state, lanes->width, first + offset, last + offset, window, scores);
    lanes->maximum(scores, last - first, state->largest);
}

static void write_outputs(
    const struct attention_shape *shape, const struct member *member, int64_t kv_head, int width,
    const struct lane_state *state, float *attended) {
    int64_t group = query_group(shape), dim = shape->head_dim;
    for (int64_t i = 0; i < member->count; i++) {
        int64_t query = member->first + i;
        int64_t head = kv_head * group + query % group;
        float *to = attended + ((member->span->first_token + query / group) * shape->num_heads + head) * dim;
        float factor = 1.0f / state->total[i];
        for (int64_t d = 0; d < dim; d++) to[d] = state->out[out_index(width, dim, i, d)] * factor;
    }
}

/* One tile, one KV head.

   Args: `heads` [num_tokens][num_heads + 2 * num_kv_heads][head_dim], rotated; `attended`
   [num_tokens][num_heads][head_dim]; `scratch` has 2 * lane_state_floats + tile->num_scores floats. */
static void attend_tile(
    const struct attention_shape *shape, const struct tile *tile, const struct member *members, int64_t layer,
    int64_t kv_head, int64_t window, const float *heads, float *attended, float *scratch) {
    int64_t dim = shape->head_dim, num_shared = tile->num_shared - tile->shared_first;
    const struct lane_functions *wide = functions_for(tile->count);
    struct lane_state all = {.query = scratch, .out = scratch + MAX_WIDTH * dim};
    scratch += lane_state_floats(shape);
    struct lane_state one = {.query = scratch, .out = scratch + MAX_WIDTH * dim};
    float *shared_scores = scratch + lane_state_floats(shape), *scores = shared_scores + num_shared * wide->width;
    const struct member *member = members + tile->first_member, *end = member + tile->num_members;
    const struct segment *shared = &member->span->shared;

    int lane = 0;
    for (int i = 0; i < tile->count; i++) all.largest[i] = -INFINITY;
    if (num_shared) {
        for (const struct member *m = member; m < end; lane += m++->count)
            load_queries(shape, m, kv_head, heads, lane, wide->width, &all);
        clear_lanes(shape, lane, wide->width, &all);
        score_segment(
            shape, shared, layer, kv_head, tile->shared_first, tile->num_shared, 0, window, wide, &all, shared_scores);
    }
    lane = 0;
    float *own_scores = scores;
    for (const struct member *m = member; m < end; lane += m++->count) {
        const struct lane_functions *narrow = functions_for(m->count);
        load_queries(shape, m, kv_head, heads, 0, narrow->width, &one);
        clear_lanes(shape, m->count, narrow->width, &one);
        memcpy(one.largest, all.largest + lane, m->count * sizeof(float));
        score_segment(
            shape, &m->span->own, layer, kv_head, m->own_first, m->own_last, m->span->num_shared, window, narrow, &one,
            own_scores);
        memcpy(all.largest + lane, one.largest, m->count * sizeof(float));
        own_scores += (m->own_last - m->own_first) * narrow->width;
    }

    if (num_shared) {
        const float *values = segment_data(shape, shared, layer, true, kv_head) + tile->shared_first * dim;
        memset(all.total, 0, sizeof all.total);
        memset(all.out, 0, wide->width * dim * sizeof(float));
        wide->weigh(shared_scores, values, num_shared, dim, all.largest, all.total, all.out);
    }
    lane = 0;
    own_scores = scores;
    for (const struct member *m = member; m < end; lane += m++->count) {
        const struct lane_functions *narrow = functions_for(m->count);
        memset(one.largest, 0, sizeof one.largest);
        memset(one.total, 0, sizeof one.total);
        memset(one.out, 0, narrow->width * dim * sizeof(float));
        memcpy(one.largest, all.largest + lane, m->count * sizeof(float));
        for (int i = 0; num_shared && i < m->count; i++) {
            one.total[i] = all.total[lane + i];
            for (int64_t d = 0; d < dim; d++)
                one.out[out_index(narrow->width, dim, i, d)] = all.out[out_index(wide->width, dim, lane + i, d)];
        }
        const float *values = segment_data(shape, &m->span->own, layer, true, kv_head) + m->own_first * dim;
        narrow->weigh(own_scores, values, m->own_last - m->own_first, dim, one.largest, one.total, one.out);
        write_outputs(shape, m, kv_head, narrow->width, &one, attended);
        own_scores += (m->own_last - m->own_first) * narrow->width;
    }
}

#endif
