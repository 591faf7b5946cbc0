/* How a step's queries are cut into tiles, one query in each lane, and where their keys are. */

#ifndef REFT_TILES_H
#define REFT_TILES_H

#include <stdbool.h>

#include "vectors.h"

#if LANES == 16
#define MAX_WIDTH 32
#else
#define MAX_WIDTH 16
#endif

/* Lanes of a tile of so many queries: the width of the narrowest functions that hold them. */
INLINE int tile_width(int64_t num_queries) {
    return num_queries <= 4 ? 4 : num_queries <= 8 ? 8 : num_queries <= 16 ? 16 : 32;
}

struct attention_shape {
    int64_t num_heads, num_kv_heads, head_dim;
    float scale;
};

/* A row of a slab. `layers` holds the addresses of the slab's K and V, layer by layer: K0, V0, K1, V1, ... */
struct segment {
    float *const *layers;
    int64_t row, capacity;
};

/* Consecutive positions of one sequence in this step. Positions below `num_shared` live in `shared`, the others in
   `own` at position - num_shared. */
struct span {
    int64_t first_token, num_tokens, first_position;
    struct segment own, shared;
    int64_t num_shared;
};

INLINE float *segment_data(
    const struct attention_shape *shape, const struct segment *segment, int64_t layer, bool is_value, int64_t kv_head) {
    int64_t row = segment->row * shape->num_kv_heads + kv_head;
    return segment->layers[2 * layer + is_value] + row * segment->capacity * shape->head_dim;
}

/* Queries [first, first + count) of a span, counted token by token and, within a token, over the heads of a group.
   They see own keys [own_first, own_last). */
struct member {
    const struct span *span;
    int64_t first, count, own_first, own_last;
};

/* Members that are computed together, `count` queries; they see keys [shared_first, num_shared) of one prefix. */
struct tile {
    int64_t first_member, num_members, count, shared_first, num_shared;
    int64_t num_scores; /* floats of all members' scores, the shared ones too */
};

INLINE int64_t query_group(const struct attention_shape *shape) { return shape->num_heads / shape->num_kv_heads; }

INLINE int64_t query_position(const struct attention_shape *shape, const struct member *member, int64_t query) {
    return member->span->first_position + (member->first + query) / query_group(shape);
}

INLINE bool is_same_segment(const struct segment *a, const struct segment *b) {
    return a->layers == b->layers && a->row == b->row;
}

static struct member make_member(
    const struct attention_shape *shape, const struct span *span, int64_t first, int64_t count, int64_t window) {
    struct member member = {span, first, count, 0, 0};
    member.own_last = query_position(shape, &member, count - 1) + 1 - span->num_shared;
    int64_t oldest = query_position(shape, &member, 0) - window + 1 - span->num_shared;
    if (window && oldest > 0) member.own_first = oldest;
    return member;
}

/* Whether a span's queries can be added to a tile: a tile holds one span, or several that share a prefix. */
static bool can_join(const struct tile *tile, const struct member *members, const struct span *span) {
    const struct span *other = members[tile->first_member].span;
    return span->num_shared && tile->count < MAX_WIDTH && other->num_shared == span->num_shared &&
           is_same_segment(&other->shared, &span->shared);
}

/* Cut a step's queries into tiles; returns how many. `tiles` and `members` have room for `most_tiles`. */
static int64_t make_tiles(
    const struct attention_shape *shape, const struct span *spans, int64_t num_spans, int64_t window,
    struct tile *tiles, struct member *members) {
    int64_t num_tiles = 0, num_members = 0;
    for (const struct span *span = spans; span < spans + num_spans; span++) {
        int64_t first = 0, num_queries = span->num_tokens * query_group(shape);
        while (first < num_queries) {
            if (!num_tiles || !can_join(&tiles[num_tiles - 1], members, span))
                tiles[num_tiles++] = (struct tile){.first_member = num_members, .num_shared = span->num_shared,
                                                   .shared_first = span->num_shared};
            struct tile *tile = &tiles[num_tiles - 1];
            int64_t room = MAX_WIDTH - tile->count, left = num_queries - first;
            struct member *member = &members[num_members++];
            *member = make_member(shape, span, first, left < room ? left : room, window);
            int64_t oldest = window ? query_position(shape, member, 0) - window + 1 : 0;
            if (oldest < 0) oldest = 0;
            if (oldest < tile->shared_first) tile->shared_first = oldest;
            tile->num_members++;
            tile->count += member->count;
            tile->num_scores += (member->own_last - member->own_first) * tile_width(member->count);
            first += member->count;
        }
    }
    for (struct tile *tile = tiles; tile < tiles + num_tiles; tile++)
        tile->num_scores += (tile->num_shared - tile->shared_first) * tile_width(tile->count);
    return num_tiles;
}

/* Tiles that a step can have at most, and members: every span may start one, and every full tile is one. */
INLINE int64_t most_tiles(const struct attention_shape *shape, int64_t num_tokens, int64_t num_spans) {
    return 2 * (num_spans + num_tokens * query_group(shape) / MAX_WIDTH) + 1;
}

#endif
