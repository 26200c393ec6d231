// Dropout: a mask drawn again wherever it is needed.
//
// Floor: x and y once, at the bandwidth of memory; ten integer operations a draw.
//
// Compiled for: T.

// y = x scale where the draw keeps it, else 0; x and y may be the same
KERNEL(dropout, const T *x, T *y, u64 n, u64 key, u64 first, f32 rate, f32 scale) {
    EACH_PACK(i, n) {
        f32 v[PACK];
        load(x, i, n, v);
        EACH(k) v[k] = uniform(key, first + i + k) >= rate ? v[k] * scale : 0.0f;
        store(y, i, n, v);
    }
}
