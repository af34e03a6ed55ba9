/* What stands between the products of a decoder's layer, each as one pass over memory.

   bf16 is the upper half of an fp32; sums and functions are in fp32. Rows lie one behind the other.
   Legend: T tokens, E width, D width of a head. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EACH_ROW _Pragma("omp parallel for schedule(static)")
#define EACH_APART _Pragma("omp simd")
enum { MOST_KEYS = 1024 };

typedef uint16_t bf16;

static inline float wide(bf16 half)
{
    union { uint32_t bits; float value; } number = { (uint32_t)half << 16 };
    return number.value;
}

/* To the nearest, of two equally near to the even one. What is not a number stays none. */
static inline bf16 narrow(float value)
{
    union { float value; uint32_t bits; } number = { value };
    uint32_t rounded = number.bits + 0x7fff + (number.bits >> 16 & 1);
    return (number.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)(rounded >> 16);
}

/* Within 1e-6 of e^x: 2^n by its bits, the rest by Cephes' polynomial. */
static inline float exponential(float x)
{
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693147181f, p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { uint32_t bits; float value; } power = { (uint32_t)((int32_t)n + 127) << 23 };
    return (p * r * r + r + 1.0f) * power.value;
}

/* y = sum / rms(sum) * w with sum = x + added. `added` and `sum` may be absent together. */
void rms_norm(const float *x, const bf16 *added, const float *w, float eps, float *sum, bf16 *y, float *inverse,
              ptrdiff_t T, ptrdiff_t E)
{
    EACH_ROW
    for (ptrdiff_t t = 0; t < T; t++) {
        const float *row = x + t * E;
        float squares = 0;
        if (added) {
            const bf16 *more = added + t * E;
            float *both = sum + t * E;
            for (ptrdiff_t e = 0; e < E; e++) {
                both[e] = row[e] + wide(more[e]);
                squares += both[e] * both[e];
            }
            row = both;
        } else {
            for (ptrdiff_t e = 0; e < E; e++)
                squares += row[e] * row[e];
        }
        float scale = inverse[t] = 1 / sqrtf(squares / (float)E + eps);
        for (ptrdiff_t e = 0; e < E; e++)
            y[t * E + e] = narrow(row[e] * scale * w[e]);
    }
}

/* Gradient of x, and what else x has as one (`beside`, may be absent); once more in bf16 where asked. */
void rms_norm_backward(const bf16 *grad, const float *x, const float *inverse, const float *w, const float *beside,
                       float *out, bf16 *narrowed, ptrdiff_t T, ptrdiff_t E)
{
    EACH_ROW
    for (ptrdiff_t t = 0; t < T; t++) {
        const bf16 *g = grad + t * E;
        const float *row = x + t * E, *more = beside + t * E;
        float *to = out + t * E, scale = inverse[t], dot = 0;
        for (ptrdiff_t e = 0; e < E; e++)
            dot += wide(g[e]) * w[e] * row[e];
        float factor = -dot / (float)E * scale * scale * scale;
        if (beside)
            for (ptrdiff_t e = 0; e < E; e++)
                to[e] = more[e] + wide(g[e]) * w[e] * scale + row[e] * factor;
        else
            for (ptrdiff_t e = 0; e < E; e++)
                to[e] = wide(g[e]) * w[e] * scale + row[e] * factor;
        if (narrowed)
            for (ptrdiff_t e = 0; e < E; e++)
                narrowed[t * E + e] = narrow(to[e]);
    }
}

/* out = x + added, in fp32. */
void add(const float *x, const bf16 *added, float *out, ptrdiff_t count)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < count; i++)
        out[i] = x[i] + wide(added[i]);
}

/* y = silu(g) * u */
void swiglu(const bf16 *gate, const bf16 *up, bf16 *y, ptrdiff_t count)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < count; i++) {
        float g = wide(gate[i]);
        y[i] = narrow(g / (1 + exponential(-g)) * wide(up[i]));
    }
}

void swiglu_backward(const bf16 *grad, const bf16 *gate, const bf16 *up, bf16 *grad_gate, bf16 *grad_up,
                     ptrdiff_t count)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < count; i++) {
        float g = wide(gate[i]), dy = wide(grad[i]), s = 1 / (1 + exponential(-g));
        grad_up[i] = narrow(dy * g * s);
        grad_gate[i] = narrow(dy * wide(up[i]) * s * (1 + g * (1 - s)));
    }
}

/* Each pair (d, d + D / 2) as one point: (a, b) becomes (a cos + b low, b cos + a high). The sign of the first half
   lies in the sines. */
static inline void turn_row(const bf16 *restrict from, const bf16 *restrict cosine, const bf16 *restrict low,
                            const bf16 *restrict high, bf16 *restrict to, ptrdiff_t half)
{
    bf16 *restrict behind = to + half;
    EACH_APART
    for (ptrdiff_t d = 0; d < half; d++) {
        float a = wide(from[d]), b = wide(from[d + half]);
        to[d] = narrow(a * wide(cosine[d]) + b * wide(low[d]));
        behind[d] = narrow(b * wide(cosine[d + half]) + a * wide(high[d]));
    }
}

/* rows[i] = source[order[i]], the first `turned` of them by the angles of row i of the tables. */
void turn(const bf16 *source, const int64_t *order, const bf16 *cosine, const bf16 *sine, bf16 *rows, ptrdiff_t turned,
          ptrdiff_t count, ptrdiff_t D)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < count; i++) {
        const bf16 *from = source + order[i] * D, *s = sine + i * D;
        if (i < turned)
            turn_row(from, cosine + i * D, s, s + D / 2, rows + i * D, D / 2);
        else
            memcpy(rows + i * D, from, (size_t)D * sizeof(bf16));
    }
}

/* The way back: grad[j] = what rows[inverse[j]] has as its gradient. */
void turn_back(const bf16 *rows, const int64_t *inverse, const bf16 *cosine, const bf16 *sine, bf16 *grad,
               ptrdiff_t turned, ptrdiff_t count, ptrdiff_t D)
{
    EACH_ROW
    for (ptrdiff_t j = 0; j < count; j++) {
        ptrdiff_t i = inverse[j];
        const bf16 *from = rows + i * D, *s = sine + i * D;
        if (i < turned)
            turn_row(from, cosine + i * D, s + D / 2, s, grad + j * D, D / 2);
        else
            memcpy(grad + j * D, from, (size_t)D * sizeof(bf16));
    }
}

/* Keys that a query sees: row r is of query r / group, which sees `before` keys, itself, and no more than `window`
   of them all where that is not 0. Returns the end; *first is where they begin. */
static inline ptrdiff_t seen(ptrdiff_t r, ptrdiff_t keys, const ptrdiff_t *shape, ptrdiff_t *first)
{
    ptrdiff_t group = shape[0], before = shape[1], window = shape[2], end = before + r / group + 1;
    end = end < keys ? end : keys;
    *first = window && before + r / group + 1 > window ? before + r / group + 1 - window : 0;
    return end;
}

/* In place, over the keys that each query sees; 0 elsewhere. At most MOST_KEYS keys. `shape`: group, before, window. */
void causal_softmax(bf16 *scores, ptrdiff_t batch, ptrdiff_t rows, ptrdiff_t keys, const ptrdiff_t *shape)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < batch * rows; i++) {
        bf16 *row = scores + i * keys;
        float made[MOST_KEYS], most = -INFINITY, sum = 0;
        ptrdiff_t first, end = seen(i % rows, keys, shape, &first);
#pragma omp simd reduction(max : most)
        for (ptrdiff_t k = first; k < end; k++) {
            float score = made[k] = wide(row[k]);
            most = score > most ? score : most;
        }
        for (ptrdiff_t k = first; k < end; k++) {
            made[k] = exponential(made[k] - most);
            sum += made[k];
        }
        float share = 1 / sum;
        memset(row, 0, (size_t)first * sizeof(bf16));
        for (ptrdiff_t k = first; k < end; k++)
            row[k] = narrow(made[k] * share);
        memset(row + end, 0, (size_t)(keys - end) * sizeof(bf16));
    }
}

/* Gradient of the scores, in place of the weights' own. */
void causal_softmax_backward(bf16 *grad, const bf16 *weight, ptrdiff_t batch, ptrdiff_t rows, ptrdiff_t keys,
                             const ptrdiff_t *shape)
{
    EACH_ROW
    for (ptrdiff_t i = 0; i < batch * rows; i++) {
        bf16 *row = grad + i * keys;
        const bf16 *w = weight + i * keys;
        float dot = 0;
        ptrdiff_t first, end = seen(i % rows, keys, shape, &first);
        for (ptrdiff_t k = first; k < end; k++)
            dot += wide(row[k]) * wide(w[k]);
        memset(row, 0, (size_t)first * sizeof(bf16));
        for (ptrdiff_t k = first; k < end; k++)
            row[k] = narrow(wide(w[k]) * (wide(row[k]) - dot));
        memset(row + end, 0, (size_t)(keys - end) * sizeof(bf16));
    }
}
