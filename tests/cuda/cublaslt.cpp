// A double of NVIDIA's cuBLASLt (libcublasLt.so.12) for tests, beside the double of the driver: products are computed on the host, in order
// with what else is in the stream. It is our reading of the library's interface and no GPU.
//
// MEMFIT_DOUBLE_FAIL       cublas: it cannot be started; product:N, the N-th product is refused
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <string>
#include <vector>

typedef int Status;
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };

struct Layout {
    uint32_t type;
    uint64_t rows, columns;
    int64_t ld;
    size_t width() const { return type == R_32F ? 4 : 2; }
    size_t bytes() const { return ((columns - 1) * ld + rows) * width(); }
};
struct Description {
    uint32_t transposed[2] = {0, 0}, epilogue = EPILOGUE_DEFAULT;
    uint64_t bias = 0;
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t scheme = 7, aligned[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};
static const uint64_t MARK = 0x6d656d666974;

static long live = 0, products = 0;
static bool fails(const char *what, long number) {
    const char *text = getenv("MEMFIT_DOUBLE_FAIL");
    std::string wanted = number ? std::string(what) + ":" + std::to_string(number) : what;
    return text && wanted == text;
}
template <class T> static T of_driver(const char *name) {
    static void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    void *found = driver ? dlsym(driver, name) : nullptr;
    if (!found) {
        fprintf(stderr, "cuBLASLt double: the driver's double is not there\n");
        abort();
    }
    return reinterpret_cast<T>(found);
}

static float wide(uint32_t type, const char *at) {
    if (type == R_32F) {
        float value;
        memcpy(&value, at, 4);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, 2);
    if (type == R_16F) {
        _Float16 value;
        memcpy(&value, &bits, 2);
        return float(value);
    }
    uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
static void narrow(uint32_t type, char *at, float value) {
    if (type == R_32F) {
        memcpy(at, &value, 4);
    } else if (type == R_16F) {
        _Float16 half = _Float16(value);
        memcpy(at, &half, 2);
    } else {
        uint32_t word;
        memcpy(&word, &value, 4);
        uint16_t bits = std::isnan(value) ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
        memcpy(at, &bits, 2);
    }
}

#define API extern "C" __attribute__((visibility("default"))) Status

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 120805; }
API cublasLtCreate(void **handle) {
    if (fails("cublas", 0)) return NOT_INITIALIZED;
    *handle = new int(0);
    live += 1;
    return SUCCESS;
}
static void report() {
    if (live) fprintf(stderr, "cuBLASLt double: %ld things are left\n", live), abort();
}
API cublasLtDestroy(void *handle) {
    delete static_cast<int *>(handle);
    live -= 1;
    report();
    return SUCCESS;
}
API cublasLtMatmulDescCreate(void **made, uint32_t compute, uint32_t scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return NOT_SUPPORTED;
    *made = new Description;
    live += 1;
    return SUCCESS;
}
API cublasLtMatmulDescDestroy(void *made) {
    delete static_cast<Description *>(made);
    live -= 1;
    return SUCCESS;
}
API cublasLtMatmulDescSetAttribute(void *of, uint32_t what, const void *value, size_t bytes) {
    Description *d = static_cast<Description *>(of);
    if (what == 8 && bytes == 8) return memcpy(&d->bias, value, 8), SUCCESS;
    if (bytes != 4) return INVALID_VALUE;
    uint32_t word;
    memcpy(&word, value, 4);
    if ((what == 3 || what == 4) && word <= 1) return d->transposed[what - 3] = word, SUCCESS;
    if (what == 7 && (word == EPILOGUE_DEFAULT || word == EPILOGUE_BIAS)) return d->epilogue = word, SUCCESS;
    return INVALID_VALUE;
}
API cublasLtMatrixLayoutCreate(void **made, uint32_t type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (!rows || !columns || ld < int64_t(rows)) return INVALID_VALUE;
    if (type != R_32F && type != R_16F && type != R_16BF) return NOT_SUPPORTED;
    *made = new Layout{type, rows, columns, ld};
    live += 1;
    return SUCCESS;
}
API cublasLtMatrixLayoutDestroy(void *made) {
    delete static_cast<Layout *>(made);
    live -= 1;
    return SUCCESS;
}
API cublasLtMatmulPreferenceCreate(void **made) {
    *made = new Preference;
    live += 1;
    return SUCCESS;
}
API cublasLtMatmulPreferenceDestroy(void *made) {
    delete static_cast<Preference *>(made);
    live -= 1;
    return SUCCESS;
}
API cublasLtMatmulPreferenceSetAttribute(void *of, uint32_t what, const void *value, size_t bytes) {
    Preference *p = static_cast<Preference *>(of);
    if (what == 1 && bytes == 8) return memcpy(&p->workspace, value, 8), SUCCESS;
    if (what == 3 && bytes == 4) return memcpy(&p->scheme, value, 4), SUCCESS;
    if (what >= 5 && what <= 8 && bytes == 4) return memcpy(&p->aligned[what - 5], value, 4), SUCCESS;
    return INVALID_VALUE;
}
static bool fit(const Description *d, const Layout *a, const Layout *b, const Layout *c) {
    uint64_t m = d->transposed[0] ? a->columns : a->rows, k = d->transposed[0] ? a->rows : a->columns;
    uint64_t other = d->transposed[1] ? b->columns : b->rows, n = d->transposed[1] ? b->rows : b->columns;
    return m == c->rows && n == c->columns && k == other && a->type == b->type && (c->type == a->type || c->type == R_32F);
}
API cublasLtMatmulAlgoGetHeuristic(void *, void *of, void *a, void *b, void *c, void *d, void *preference, int wanted, Heuristic *found,
                                   int *count) {
    const Preference *p = static_cast<Preference *>(preference);
    *count = 0;
    bool fits = fit(static_cast<Description *>(of), static_cast<Layout *>(a), static_cast<Layout *>(b), static_cast<Layout *>(d));
    if (wanted < 1 || c != d || !fits) return INVALID_VALUE;
    // Some are not taken, so that kernels of ours run beside these.
    const Layout *rows = static_cast<Layout *>(d);
    if (rows->type != R_32F && rows->ld % 2) return NOT_SUPPORTED;
    for (uint32_t aligned : p->aligned)
        if (aligned > 16) return NOT_SUPPORTED;
    *found = Heuristic{{{MARK, p->scheme}}, 0, SUCCESS, 1.0f, {}};
    *count = 1;
    return SUCCESS;
}
API cublasLtMatmul(void *, void *of, const float *alpha, uint64_t a, void *la, uint64_t b, void *lb, const float *beta, uint64_t c, void *lc,
                   uint64_t d, void *ld, const Algorithm *algorithm, void *, size_t workspace, void *stream) {
    auto at = of_driver<char *(*)(uint64_t, size_t)>("double_at");
    auto enqueue = of_driver<int (*)(void *, const std::function<void()> *)>("double_enqueue");
    Description description = *static_cast<Description *>(of);
    Layout of_a = *static_cast<Layout *>(la), of_b = *static_cast<Layout *>(lb), of_d = *static_cast<Layout *>(ld);
    bool biased = description.epilogue == EPILOGUE_BIAS;
    if (algorithm->data[0] != MARK || workspace || c != d || lc != ld || !fit(&description, &of_a, &of_b, &of_d)) return INVALID_VALUE;
    if ((a | b | d | (biased ? description.bias : 0)) % 16) return INVALID_VALUE;
    if (fails("product", ++products)) return EXECUTION_FAILED;
    char *in_a = at(a, of_a.bytes()), *in_b = at(b, of_b.bytes()), *in_d = at(d, of_d.bytes());
    char *bias = biased ? at(description.bias, of_d.rows * of_d.width()) : nullptr;
    if (!in_a || !in_b || !in_d || (biased && !bias)) {
        fprintf(stderr, "cuBLASLt double: an operand lies outside of memory\n");
        return EXECUTION_FAILED;
    }
    float scale = *alpha, keep = *beta;
    uint64_t m = of_d.rows, n = of_d.columns, k = description.transposed[0] ? of_a.rows : of_a.columns;
    std::function<void()> run = [=] {
        // Columns of both operands, as wide numbers in a row.
        std::vector<float> left(m * k), right(n * k);
        for (uint64_t i = 0; i < m; ++i)
            for (uint64_t x = 0; x < k; ++x) {
                uint64_t row = description.transposed[0] ? x : i, column = description.transposed[0] ? i : x;
                left[i * k + x] = wide(of_a.type, in_a + (column * of_a.ld + row) * of_a.width());
            }
        for (uint64_t j = 0; j < n; ++j)
            for (uint64_t x = 0; x < k; ++x) {
                uint64_t row = description.transposed[1] ? j : x, column = description.transposed[1] ? x : j;
                right[j * k + x] = wide(of_b.type, in_b + (column * of_b.ld + row) * of_b.width());
            }
        for (uint64_t j = 0; j < n; ++j)
            for (uint64_t i = 0; i < m; ++i) {
                float sum = 0;
                for (uint64_t x = 0; x < k; ++x) sum += left[i * k + x] * right[j * k + x];
                char *to = in_d + (j * of_d.ld + i) * of_d.width();
                float value = scale * sum;
                if (keep != 0) value += keep * wide(of_d.type, to);
                if (biased) value += wide(of_d.type, bias + i * of_d.width());
                narrow(of_d.type, to, value);
            }
    };
    return enqueue(stream, &run) ? EXECUTION_FAILED : SUCCESS;
}
