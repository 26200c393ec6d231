// What all kernels of attention share: who sees whom, what becomes of scores, where deltas wait, and deltas of a saved output.
//
// Probabilities are those that the forward pass keeps (SAVED 1), or none are kept (SAVED 0; Dao et al. 2022).

// What is attended to, as `AttentionShape` has it; cap and rate are 0 where there is none.
#define SHAPE                                                                                                          \
    u32 seq, u32 keys, u32 past, u32 heads, u32 kv_heads, u32 causal, u32 window, f32 scale, f32 cap, u64 key, u64 first, f32 rate

// The keys that query i sees: from LOW on, below HIGH.
#define LOW(i) first_seen((i) + past, window)
#define HIGH(i) end_seen((i) + past, window, causal, keys)
DEVICE u32 first_seen(u32 i, u32 window) { return i + 1 > window ? i + 1 - window : 0; }
DEVICE u32 end_seen(u32 i, u32 window, u32 causal, u32 keys) {
    u32 end = causal ? i + 1 : i + window;
    return end < keys ? end : keys;
}

DEVICE f32 bend(f32 score, f32 cap) { return cap > 0.0f ? cap * tanh_f32(score / cap) : score; }

// The factor that dropout gives the probability of a key for a row of (B heads T): 0 or 1 / (1 - rate).
DEVICE f32 dropped(u64 key, u64 first, f32 rate, u64 row, u32 keys, u32 column) {
    if (rate == 0.0f) return 1.0f;
    return uniform(key, first + row * keys + column) >= rate ? 1.0f / (1.0f - rate) : 0.0f;
}

// Σ p dp of each row, into the start of the row's dq, where the launches that follow find it.
DEVICE T *place_of_delta(T *dq, u64 batch, u32 seq, u32 heads, u32 head, u32 i) {
    return dq + ((batch * seq + i) * heads + head) * HEAD;
}
DEVICE void put_delta(T *at, f32 delta) {
    u32 bits = __float_as_uint(delta);
    u16 *halves = reinterpret_cast<u16 *>(at); // a row of 16-bit numbers need not be aligned for more
    halves[0] = bits & 0xffff;
    halves[1] = bits >> 16;
}
DEVICE f32 get_delta(const T *at) {
    const u16 *halves = reinterpret_cast<const u16 *>(at);
    return __uint_as_float(u32(halves[0]) | u32(halves[1]) << 16);
}

#define ALONG (HEAD > 128 ? 32 : HEAD > 64 ? 16 : HEAD > 32 ? 8 : 4) // threads of a row

// The delta of each row, Σ dout out. Floor: both once, at the bandwidth of memory
KERNEL(attention_along, const T *dout, const T *out, T *dq, u64 rows) {
    u32 own = threadIdx.x % ALONG;
    for (u64 from = u64(blockIdx.x) * (THREADS / ALONG); from < rows; from += u64(gridDim.x) * (THREADS / ALONG)) {
        u64 row = from + threadIdx.x / ALONG;
        f32 sum = 0.0f;
        for (u32 i = own * PACK; i < HEAD && row < rows; i += ALONG * PACK) {
            f32 a[PACK], b[PACK];
            load(dout + row * HEAD, i, HEAD, a);
            load(out + row * HEAD, i, HEAD, b);
            EACH(k) sum = fmaf(a[k], b[k], sum);
        }
#pragma unroll
        for (u32 apart = ALONG / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
        if (own == 0 && row < rows) put_delta(dq + row * HEAD, sum);
    }
}
