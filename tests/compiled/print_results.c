/* Prints a digest of the results of every function of qdq/compiled/compiled.c on generated arrays:
test_other_processors.py compares those of two processors. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BINS 4096
#define LIMBS 12
#define FIRST_HASH 14695981039346656037u

typedef struct {
    int64_t *counts;
    int32_t *exponents;
    float *largest;
    int64_t grade_count;
    int64_t *sums, *squares;
} Totals;

int64_t qdq_size_of_workspace(void);
int32_t qdq_add_tensor(const Totals *, const float *, int64_t, int64_t, int64_t, int32_t,
                       const int32_t *, void *, float *, int32_t);
void qdq_add_exactly(int64_t *, const float *, int64_t, int64_t);
void qdq_divide_exactly(const int64_t *, int64_t, int64_t, double *);
int64_t qdq_search_levels(const double *, int64_t, const double *, const double *, int64_t,
                          const int64_t *, int64_t);
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

/* Add samples of growing and of shrinking magnitude, the second one special if wanted. */
static void print_totals(int64_t outer, int64_t channels, int64_t inner, int is_transposed,
                         int has_specials, int grade_count)
{
    int32_t *grade_of_channel = malloc((size_t)channels * sizeof(int32_t));
    for (int64_t i = 0; i < channels; i++)
        grade_of_channel[i] = (int32_t)(i % grade_count);
    int64_t size = outer * channels * inner;
    float largest[8] = {0};
    int32_t exponents[8] = {0};
    int64_t *counts = calloc((size_t)grade_count * BINS, sizeof(int64_t));
    void *workspaces = calloc((size_t)grade_count, (size_t)qdq_size_of_workspace());
    int64_t *limbs = calloc((size_t)(2 * LIMBS * channels), sizeof(int64_t));
    float *sums = malloc((size_t)(2 * outer * channels) * sizeof(float));
    Totals totals = {counts, exponents, largest, grade_count, limbs, limbs + LIMBS * channels};
    uint64_t hash = FIRST_HASH;
    for (int sample = 0; sample < 4; sample++) {
        float *values = make_floats(size, has_specials && sample == 1);
        for (int64_t i = 0; i < size; i++)
            values[i] *= sample == 2 ? 64.0f : 1.0f;
        int32_t outcome = qdq_add_tensor(&totals, values, outer, channels, inner, is_transposed,
                                         grade_count > 1 ? grade_of_channel : 0, workspaces, sums, 0);
        hash = digest(hash, &outcome, sizeof outcome, 0);
        free(values);
    }
    hash = digest(hash, largest, sizeof largest, 1);
    hash = digest(hash, exponents, sizeof exponents, 0);
    hash = digest(hash, counts, (size_t)grade_count * BINS * sizeof(int64_t), 0);
    hash = digest(hash, limbs, (size_t)(2 * LIMBS * channels) * sizeof(int64_t), 0);
    printf("totals %lld %lld %lld %d %d %d: %016llx\n", (long long)outer, (long long)channels,
           (long long)inner, is_transposed, has_specials, grade_count, (unsigned long long)hash);
    free(grade_of_channel), free(counts), free(workspaces), free(sums), free(limbs);
}

static void print_sums(int64_t count, int64_t size)
{
    float *vectors = make_floats(count * size, 0);
    int64_t *limbs = calloc((size_t)(LIMBS * size), sizeof(int64_t));
    qdq_add_exactly(limbs, vectors, count, size);
    uint64_t hash = digest(FIRST_HASH, limbs, (size_t)(LIMBS * size) * sizeof(int64_t), 0);
    double *means = malloc((size_t)size * sizeof(double));
    qdq_divide_exactly(limbs, size, count, means);
    hash = digest(hash, means, (size_t)size * sizeof(double), 0);
    printf("sums %lld %lld: %016llx\n", (long long)count, (long long)size,
           (unsigned long long)hash);
    free(vectors), free(limbs), free(means);
}

static void print_levels(int64_t count, int64_t level_count)
{
    enum { CANDIDATES = 50 };
    double *values = malloc((size_t)count * sizeof(double));
    double *moments = calloc((size_t)(3 * (count + 1)), sizeof(double));
    double levels[128];
    int64_t candidates[CANDIDATES];
    double value = 0.0;
    for (int64_t i = 0; i < count; i++) {
        value += (double)(next_bits() % 1000) * 4.0 / (double)count;
        values[i] = value;
        double weight = (double)(next_bits() % 100) / (1.0 + value);
        for (int64_t power = 0; power < 3; power++, weight *= value)
            moments[power * (count + 1) + i + 1] = moments[power * (count + 1) + i] + weight;
    }
    for (int64_t i = 0; i < level_count; i++)
        levels[i] = (double)i;
    for (int64_t i = 0; i < CANDIDATES; i++)
        candidates[i] = 4000 - 70 * i;
    int64_t best = qdq_search_levels(values, count, moments, levels, level_count, candidates,
                                     CANDIDATES);
    printf("levels %lld %lld: %lld\n", (long long)count, (long long)level_count, (long long)best);
    free(values), free(moments);
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
    for (int i = 0; i < CANDIDATES; i++)
        for (int64_t row = 0; row < count; row++)
            candidates[i * count + row] = 1.0f - 0.03f * (float)i - 0.001f * (float)row;
    qdq_search_scales(rows, count, width, mean, variance, groups, candidates, CANDIDATES, count,
                      is_e4m3 ? 448.0f : 127.0f, is_e4m3, amax, 0);
    uint64_t hash = digest(FIRST_HASH, amax, (size_t)count * sizeof(float), 1);
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
            print_totals(shapes[i][0], shapes[i][1], shapes[i][2], form & 1, form >> 1 & 1,
                         form & 4 ? 3 : 1);
    for (int64_t count = 1; count < 40; count += 3)
        print_sums(count, 7 * count);
    for (int64_t count = 1; count < 4000; count = 2 * count + 1)
        for (int64_t level_count = 8; level_count <= 128; level_count *= 4)
            print_levels(count, level_count);
    for (int64_t width = 1; width < 600; width += 61)
        for (int is_e4m3 = 0; is_e4m3 < 2; is_e4m3++)
            print_search(9, width, is_e4m3);
    return 0;
}
