/* Float vectors of the machine's width, in GCC's vector extensions: gcc and clang, any processor. */

#ifndef REFT_VECTORS_H
#define REFT_VECTORS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16        /* floats of one vector */
#define PANEL_VECTORS 2 /* vectors of one row of a panel */
#define TILE_ROWS 12    /* TILE_ROWS * PANEL_VECTORS sums live in registers, of 32 */
#elif defined(__AVX__)
#define LANES 8
#define PANEL_VECTORS 2
#define TILE_ROWS 6 /* of 16 registers */
#elif defined(__aarch64__)
#define LANES 4
#define PANEL_VECTORS 4
#define TILE_ROWS 6 /* of 32 registers */
#else
#define LANES 4
#define PANEL_VECTORS 2
#define TILE_ROWS 6
#endif

#define PANEL_COLUMNS (LANES * PANEL_VECTORS)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vector __attribute__((vector_size(LANES * 4)));
typedef int32_t int_vector __attribute__((vector_size(LANES * 4)));
typedef uint16_t half_vector __attribute__((vector_size(LANES * 2)));
typedef int8_t byte_vector __attribute__((vector_size(LANES)));

INLINE vector load(const float *from) {
    vector value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, vector value) { memcpy(to, &value, sizeof value); }

/* Signed bytes as integers. gcc's own conversion takes several times as long as the instruction. */
INLINE int_vector load_bytes(const int8_t *from) {
#if defined(__AVX512F__)
    return (int_vector)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(__AVX2__)
    return (int_vector)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    byte_vector stored;
    memcpy(&stored, from, sizeof stored);
    return __builtin_convertvector(stored, int_vector);
#endif
}

INLINE vector broadcast(float value) { return value - (vector){0}; }

/* e^x within 2 units in the last place: 0 below -87.3, infinity above 88.3, NaN for NaN.

   x = n ln 2 + r with |r| <= ln 2 / 2; e^r is a polynomial, 2^n is put together from its bits. */
#define DEFINE_EXP(NAME, VECTOR, INT_VECTOR)                                                     \
    INLINE VECTOR NAME(VECTOR x) {                                                               \
        const VECTOR shift = 12582912.0f - (VECTOR){0}; /* 1.5 * 2^23: adding it rounds */       \
        VECTOR shifted = x * 1.44269504088896341f + shift;                                       \
        VECTOR n = shifted - shift;                                                              \
        VECTOR r = x - n * 0.693359375f;                                                         \
        r = r - n * -2.12194440e-4f;                                                             \
        VECTOR p = r * 1.9875691500e-4f + 1.3981999507e-3f;                                      \
        p = p * r + 8.3334519073e-3f;                                                            \
        p = p * r + 4.1665795894e-2f;                                                            \
        p = p * r + 1.6666665459e-1f;                                                            \
        p = p * r + 5.0000001201e-1f;                                                            \
        p = p * r * r + r + 1.0f;                                                                \
        VECTOR power = (VECTOR)(((INT_VECTOR)shifted - (0x4B400000 - 127)) << 23);               \
        INT_VECTOR value = (INT_VECTOR)(p * power);                                              \
        INT_VECTOR is_small = x < -87.3f, is_large = x > 88.3f;                                  \
        INT_VECTOR infinite = 0x7F800000 - (INT_VECTOR){0};                                      \
        return (VECTOR)((value & ~is_small & ~is_large) | (infinite & is_large));                \
    }

DEFINE_EXP(exponential, vector, int_vector)

#endif
