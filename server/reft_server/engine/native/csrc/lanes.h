/* Attention of WIDTH queries at once, one query in each lane. Included once for each width; see attention.h.

   In a lane everything happens in the order of the keys, one operation at a time, so a query's result does not depend
   on the width, on the other lanes, or on how the keys are cut into segments. WIDTH is VECTORS vectors of SUBLANES. */

#define JOIN_(name, width) name##_##width
#define JOIN(name, width) JOIN_(name, width)
#define WIDE(name) JOIN(name, WIDTH)
#define VECTORS (WIDTH / SUBLANES)
#define KEYS_AT_ONCE (VECTORS == 1 ? 12 : TILE_ROWS)
#define DIMS_AT_ONCE (VECTORS == 1 || TILE_ROWS == 12 ? 8 : 4)
#define VECTORS_AT_ONCE ((TILE_ROWS == 12 ? 16 : 8) / WIDTH)

typedef float WIDE(lanes) __attribute__((vector_size(SUBLANES * 4)));
typedef int32_t WIDE(int_lanes) __attribute__((vector_size(SUBLANES * 4)));
DEFINE_EXP(WIDE(exponential), WIDE(lanes), WIDE(int_lanes))

INLINE WIDE(lanes) WIDE(load)(const float *from) {
    WIDE(lanes) value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void WIDE(store)(float *to, WIDE(lanes) value) { memcpy(to, &value, sizeof value); }

INLINE void WIDE(score_block)(const int keys, const float *query, const float *key, size_t dim, float *scores) {
    WIDE(lanes) sums[12][VECTORS];
    UNROLL for (int j = 0; j < keys; j++)
        UNROLL for (int v = 0; v < VECTORS; v++) sums[j][v] = (WIDE(lanes)){0};
    for (size_t d = 0; d < dim; d++) {
        WIDE(lanes) q[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) q[v] = WIDE(load)(query + d * WIDTH + v * SUBLANES);
        UNROLL for (int j = 0; j < keys; j++)
            UNROLL for (int v = 0; v < VECTORS; v++) sums[j][v] += key[j * dim + d] * q[v];
    }
    UNROLL for (int j = 0; j < keys; j++)
        UNROLL for (int v = 0; v < VECTORS; v++) WIDE(store)(scores + j * WIDTH + v * SUBLANES, sums[j][v]);
}

/* scores[j][lane] = sum over d of query[d][lane] * key[j][d]. */
static void WIDE(score)(const float *query, const float *key, size_t num_keys, size_t dim, float *scores) {
    size_t j = 0;
    for (; j + KEYS_AT_ONCE <= num_keys; j += KEYS_AT_ONCE) {
        touch_rows(key, j, j + KEYS_AT_ONCE, num_keys, dim);
        WIDE(score_block)(KEYS_AT_ONCE, query, key + j * dim, dim, scores + j * WIDTH);
    }
    for (; j + 4 <= num_keys; j += 4) WIDE(score_block)(4, query, key + j * dim, dim, scores + j * WIDTH);
    for (; j < num_keys; j++) WIDE(score_block)(1, query, key + j * dim, dim, scores + j * WIDTH);
}

/* largest[lane] = the largest of it and of scores[j][lane]. */
static void WIDE(maximum)(const float *scores, size_t num_keys, float *largest) {
    for (int v = 0; v < WIDTH; v += SUBLANES) {
        WIDE(lanes) top = WIDE(load)(largest + v);
        for (size_t j = 0; j < num_keys; j++) {
            WIDE(lanes) score = WIDE(load)(scores + j * WIDTH + v);
            WIDE(int_lanes) is_larger = score > top;
            top = (WIDE(lanes))(((WIDE(int_lanes))score & is_larger) | ((WIDE(int_lanes))top & ~is_larger));
        }
        WIDE(store)(largest + v, top);
    }
}

#if WIDTH <= NARROW
/* out[lane][d] += sum over j of weights[j][lane] * value[j][d], for the d of `count` vectors. */
INLINE void WIDE(weigh_vectors)(
    const int count, const float *weights, const float *value, size_t num_keys, size_t dim, float *out) {
    vector sums[WIDTH][VECTORS_AT_ONCE];
    UNROLL for (int lane = 0; lane < WIDTH; lane++)
        UNROLL for (int v = 0; v < count; v++) sums[lane][v] = load(out + lane * dim + v * LANES);
    for (size_t j = 0; j < num_keys; j++) {
        vector row[VECTORS_AT_ONCE];
        UNROLL for (int v = 0; v < count; v++) row[v] = load(value + j * dim + v * LANES);
        UNROLL for (int lane = 0; lane < WIDTH; lane++)
            UNROLL for (int v = 0; v < count; v++) sums[lane][v] += weights[j * WIDTH + lane] * row[v];
    }
    UNROLL for (int lane = 0; lane < WIDTH; lane++)
        UNROLL for (int v = 0; v < count; v++) store(out + lane * dim + v * LANES, sums[lane][v]);
}

static void WIDE(weigh_values)(const float *weights, const float *value, size_t num_keys, size_t dim, float *out) {
    size_t d = 0;
    for (; d + VECTORS_AT_ONCE * LANES <= dim; d += VECTORS_AT_ONCE * LANES)
        WIDE(weigh_vectors)(VECTORS_AT_ONCE, weights, value + d, num_keys, dim, out + d);
    for (; d + LANES <= dim; d += LANES) WIDE(weigh_vectors)(1, weights, value + d, num_keys, dim, out + d);
    for (; d < dim; d++)
        for (int lane = 0; lane < WIDTH; lane++)
            for (size_t j = 0; j < num_keys; j++) out[lane * dim + d] += weights[j * WIDTH + lane] * value[j * dim + d];
}
#else
/* out[d][lane] += sum over j of weights[j][lane] * value[j][d], for `dims` of the d. */
INLINE void WIDE(weigh_dims)(
    const int dims, const float *weights, const float *value, size_t num_keys, size_t dim, float *out) {
    WIDE(lanes) sums[8][VECTORS];
    UNROLL for (int d = 0; d < dims; d++)
        UNROLL for (int v = 0; v < VECTORS; v++) sums[d][v] = WIDE(load)(out + d * WIDTH + v * SUBLANES);
    for (size_t j = 0; j < num_keys; j++) {
        WIDE(lanes) weight[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = WIDE(load)(weights + j * WIDTH + v * SUBLANES);
        UNROLL for (int d = 0; d < dims; d++)
            UNROLL for (int v = 0; v < VECTORS; v++) sums[d][v] += value[j * dim + d] * weight[v];
    }
    UNROLL for (int d = 0; d < dims; d++)
        UNROLL for (int v = 0; v < VECTORS; v++) WIDE(store)(out + d * WIDTH + v * SUBLANES, sums[d][v]);
}

static void WIDE(weigh_values)(const float *weights, const float *value, size_t num_keys, size_t dim, float *out) {
    size_t d = 0;
    touch_rows(value, 0, num_keys, num_keys, dim);
    for (; d + DIMS_AT_ONCE <= dim; d += DIMS_AT_ONCE)
        WIDE(weigh_dims)(DIMS_AT_ONCE, weights, value + d, num_keys, dim, out + d * WIDTH);
    for (; d < dim; d++) WIDE(weigh_dims)(1, weights, value + d, num_keys, dim, out + d * WIDTH);
}
#endif

/* With w[j][lane] = exp(scores[j][lane] - largest[lane]), which overwrites the scores:
   total[lane] += sum over j of w[j][lane], and out += sum over j of w[j][lane] * value[j], per lane. */
static void WIDE(weigh)(
    float *scores, const float *value, size_t num_keys, size_t dim, const float *largest, float *total, float *out) {
    enum { BLOCK = 64 }; /* keys whose values stay in the first-level cache */
    for (size_t first = 0; first < num_keys; first += BLOCK) {
        size_t count = num_keys - first < BLOCK ? num_keys - first : BLOCK;
        float *weights = scores + first * WIDTH;
        for (int v = 0; v < WIDTH; v += SUBLANES) {
            WIDE(lanes) top = WIDE(load)(largest + v), sum = WIDE(load)(total + v);
            for (size_t j = 0; j < count; j++) {
                WIDE(lanes) weight = WIDE(exponential)(WIDE(load)(weights + j * WIDTH + v) - top);
                WIDE(store)(weights + j * WIDTH + v, weight);
                sum += weight;
            }
            WIDE(store)(total + v, sum);
        }
        WIDE(weigh_values)(weights, value + first * dim, count, dim, out);
    }
}

#undef JOIN_
#undef JOIN
#undef WIDE
#undef VECTORS
#undef KEYS_AT_ONCE
#undef DIMS_AT_ONCE
#undef VECTORS_AT_ONCE
#undef WIDTH
#undef SUBLANES
