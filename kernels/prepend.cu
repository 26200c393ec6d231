// The same rows before those of every sequence, sequences without their first rows, and the gradient of such rows.
//
// Floor: each value once, at the bandwidth of memory.
//
// Compiled for: T, G (the format of the rows' gradient).

DEVICE u64 packs_of(u64 n) { return (n + PACK - 1) / PACK; }

// to[i..i + 8] = from[i..i + 8], cut at n.
DEVICE void copy(const T *from, T *to, u64 i, u64 n) {
    f32 v[PACK];
    load(from, i, n, v);
    store(to, i, n, v);
}

// y (B, P + S): `prefix` (P), then a sequence of x (B, S); P and S in elements
KERNEL(prepend, const T *prefix, const T *x, T *y, u64 batch, u64 p, u64 s) {
    u64 packs = packs_of(p) + packs_of(s);
    for (u64 item = u64(blockIdx.x) * THREADS + threadIdx.x; item < batch * packs; item += u64(gridDim.x) * THREADS) {
        u64 b = item / packs, pack = item % packs;
        if (pack < packs_of(p))
            copy(prefix, y + b * (p + s), pack * PACK, p);
        else
            copy(x + b * s, y + b * (p + s) + p, (pack - packs_of(p)) * PACK, s);
    }
}

// made (P) (+)= Σ dy (B, P + S) over sequences, in their order; `width` is P + S
KERNEL(prepend_backward, const T *dy, G *made, u64 batch, u64 p, u64 width, u32 accumulate) {
    EACH_PACK(i, p) {
        f32 sum[PACK] = {}, before[PACK] = {}, g[PACK];
        for (u64 b = 0; b < batch; ++b) {
            load(dy + b * width, i, p, g);
            EACH(k) sum[k] += g[k];
        }
        if (accumulate) load(made, i, p, before);
        EACH(k) sum[k] = before[k] + sum[k];
        store(made, i, p, sum);
    }
}

// y (B, S): x (B, P + S) without its first P
KERNEL(trim, const T *x, T *y, u64 batch, u64 p, u64 s) {
    u64 packs = packs_of(s);
    for (u64 item = u64(blockIdx.x) * THREADS + threadIdx.x; item < batch * packs; item += u64(gridDim.x) * THREADS) {
        u64 b = item / packs;
        copy(x + b * (p + s) + p, y + b * s, item % packs * PACK, s);
    }
}
