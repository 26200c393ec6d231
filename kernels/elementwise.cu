// Sums and multiples, element by element.
//
// Floor: what is read and written once, at the bandwidth of memory (add and sum: 3 values an element, scale: 2); one operation an
// element. Loads and stores are 16 bytes a thread.
//
// Compiled for: S, T (the format read and the format written).

// b += a
KERNEL(add, const T *a, T *b, u64 n) {
    EACH_PACK(i, n) {
        f32 x[PACK], y[PACK];
        load(a, i, n, x);
        load(b, i, n, y);
        EACH(k) y[k] = y[k] + x[k];
        store(b, i, n, y);
    }
}

// c = a + b
KERNEL(sum, const T *a, const T *b, T *c, u64 n) {
    EACH_PACK(i, n) {
        f32 x[PACK], y[PACK];
        load(a, i, n, x);
        load(b, i, n, y);
        EACH(k) x[k] = x[k] + y[k];
        store(c, i, n, x);
    }
}

// y = x by; x and y may be the same
KERNEL(scale, const S *x, T *y, u64 n, f32 by) {
    EACH_PACK(i, n) {
        f32 v[PACK];
        load(x, i, n, v);
        EACH(k) v[k] = v[k] * by;
        store(y, i, n, v);
    }
}

// y = 0, by bytes
KERNEL(zero, u8 *y, u64 n) {
    EACH_PACK(i, n) {
        if (i + PACK <= n)
            *reinterpret_cast<u64 *>(y + i) = 0;
        else
            for (u64 k = i; k < n; ++k) y[k] = 0;
    }
}
