/* Prints a digest of the results of every function of qdq/compiled/compiled.c on generated arrays:
test_other_processors.py compares those of two processors. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BINS 4096
#define COUNTERS 4

void qdq_measure_tensor(const float *, int64_t, int64_t, int64_t, int32_t, const int32_t *, int64_t,
                        float *, int32_t *, uint32_t *, float *, uint32_t *, int32_t);
void qdq_add_counts(int64_t *, const uint32_t *, int32_t);
void qdq_add_exactly(int64_t *, const float *, int64_t, int64_t);
void qdq_search_scales(const float *, int64_t, int64_t, const float *, const float *,
                       const int64_t *, const float *, int64_t, int64_t, float, int32_t, float *,
                       int32_t);

static uint64_t state;

static uint32_t next_bits(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/* About normal values of many magnitudes, with zeros and denormals; special ones if wanted. */
static float next_float(int has_specials)
{
    static const float specials[] = {0.0f, -0.0f, 1e-40f, -3e-45f, INFINITY, NAN, 3.4e38f};
    uint32_t choice = next_bits() % 64;
    if (choice < 4)
        return specials[choice];
    if (has_specials && choice < 7)
        return specials[choice];
    float sum = 0.0f;
    for (int i = 0; i < 4; i++)
        sum += (float)(next_bits() >> 8) / 8388608.0f - 1.0f;
    return ldexpf(sum, (int)(next_bits() % 24) - 12);
}

static float *make_floats(int64_t count, int has_specials)
{
    float *values = malloc((size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++)
        values[i] = next_float(has_specials);
    return values;
}

/* FNV-1a. NaN counts as one value: its sign and payload are the processor's choice. */
static uint64_t digest(uint64_t hash, const void *data, size_t bytes, int is_float)
{
    const unsigned char *octets = data;
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word;
        float value;
        memcpy(&word, octets + i, 4);
        memcpy(&value, octets + i, 4);
        if (is_float && isnan(value))
            word = 0x7fc00000;
        hash = (hash ^ word) * 1099511628211u;
    }
    return hash;
}

static void print_measurement(int64_t outer, int64_t channels, int64_t inner, int is_transposed,
                              int has_specials, int grade_count)
{
    float *values = make_floats(outer * channels * inner, has_specials);
    int32_t *grade_of_channel = malloc((size_t)channels * sizeof(int32_t));
    for (int64_t i = 0; i < channels; i++)
        grade_of_channel[i] = (int32_t)(i % grade_count);
    float largest[8];
    int32_t exponents[8] = {0};
    uint32_t *counts = malloc((size_t)grade_count * BINS * sizeof(uint32_t));
    uint32_t *counters = malloc((size_t)grade_count * COUNTERS * BINS * sizeof(uint32_t));
    float *sums = malloc((size_t)(2 * outer * channels) * sizeof(float));
    qdq_measure_tensor(values, outer, channels, inner, is_transposed,
                       grade_count > 1 ? grade_of_channel : 0, grade_count, largest, exponents,
                       counts, sums, counters, 0);
    uint64_t hash = digest(14695981039346656037u, largest, grade_count * sizeof(float), 1);
    for (int i = 0; i < grade_count; i++) {
        if (!(largest[i] > 0.0f && isfinite(largest[i])))
            continue;
        hash = digest(hash, exponents + i, sizeof(int32_t), 0);
        hash = digest(hash, counts + i * BINS, BINS * sizeof(uint32_t), 0);
    }
    hash = digest(hash, sums, (size_t)(2 * outer * channels) * sizeof(float), 1);
    printf("measure %lld %lld %lld %d %d %d: %016llx\n", (long long)outer, (long long)channels,
           (long long)inner, is_transposed, has_specials, grade_count, (unsigned long long)hash);
    free(values), free(grade_of_channel), free(counts), free(counters), free(sums);
}

static void print_sums(int64_t count, int64_t size)
{
    float *vectors = make_floats(count * size, 0);
    int64_t *limbs = calloc((size_t)(12 * size), sizeof(int64_t));
    qdq_add_exactly(limbs, vectors, count, size);
    int64_t totals[BINS] = {0};
    uint32_t counts[BINS];
    for (int i = 0; i < BINS; i++)
        counts[i] = next_bits() >> 12;
    qdq_add_counts(totals, counts, (int32_t)(count % 15));
    uint64_t hash = digest(14695981039346656037u, limbs, (size_t)(12 * size) * sizeof(int64_t), 0);
    hash = digest(hash, totals, sizeof totals, 0);
    printf("sums %lld %lld: %016llx\n", (long long)count, (long long)size,
           (unsigned long long)hash);
    free(vectors), free(limbs);
}

static void print_search(int64_t count, int64_t width, int is_e4m3)
{
    enum { CANDIDATES = 21 };
    float *rows = make_floats(count * width, 0);
    float *mean = make_floats(width, 0);
    float *variance = make_floats(width, 0);
    int64_t *groups = calloc((size_t)count, sizeof(int64_t));
    float *candidates = malloc((size_t)count * CANDIDATES * sizeof(float));
    float *amax = malloc((size_t)count * sizeof(float));
    for (int64_t i = 0; i < width; i++)
        variance[i] = variance[i] < 0 ? -variance[i] : variance[i];
    for (int64_t row = 0; row < count; row++) {
        float largest = 0.0f;
        for (int64_t i = 0; i < width; i++)
            largest = fmaxf(largest, fabsf(rows[row * width + i]));
        for (int i = 0; i < CANDIDATES; i++)
            candidates[row * CANDIDATES + i] = largest * (1.0f - 0.03f * (float)i);
    }
    qdq_search_scales(rows, count, width, mean, variance, groups, candidates, CANDIDATES,
                      CANDIDATES, is_e4m3 ? 448.0f : 127.0f, is_e4m3, amax, 0);
    uint64_t hash = digest(14695981039346656037u, amax, (size_t)count * sizeof(float), 1);
    printf("search %lld %lld %d: %016llx\n", (long long)count, (long long)width, is_e4m3,
           (unsigned long long)hash);
    free(rows), free(mean), free(variance), free(groups), free(candidates), free(amax);
}

int main(void)
{
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 3, 17},   {2, 8, 129}, {1, 5, 4099},
                                        {3, 33, 1000}, {1, 64, 256}, {7, 2, 31},  {1, 1, 100003}};
    state = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int form = 0; form < 8; form++)
            print_measurement(shapes[i][0], shapes[i][1], shapes[i][2], form & 1, form >> 1 & 1,
                              form & 4 ? 3 : 1);
    for (int64_t count = 1; count < 40; count += 3)
        print_sums(count, 7 * count);
    for (int64_t width = 1; width < 600; width += 61)
        for (int is_e4m3 = 0; is_e4m3 < 2; is_e4m3++)
            print_search(9, width, is_e4m3);
    return 0;
}
