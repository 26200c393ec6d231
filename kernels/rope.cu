// Rotary position embedding.
//
// Floor: x and y once, at the bandwidth of memory. A block takes the rows of one position in all sequences, so that angles, in
// double precision, are made once a position.
//
// Compiled for: T.

#define PLAIN 0
#define LINEAR 1
#define LLAMA3 2

// x and y may be the same. Shared memory: (dims) the cosines, then the sines
KERNEL(rope, const T *x, T *y, u32 batch, u32 seq, u64 first, u32 heads, u32 width, u32 dims, f64 theta, u32 scaling,
       f64 factor, f64 low, f64 high, f64 original, f64 sign) {
    DYNAMIC(f32, angles);
    const f64 TURN = 6.283185307179586;
    u32 half = dims / 2, rest = width - dims;
    u32 packs = (half + PACK - 1) / PACK, rest_packs = (rest + PACK - 1) / PACK;
    for (u32 position = blockIdx.x; position < seq; position += gridDim.x) {
        __syncthreads(); // the last position's angles have been read
        for (u32 pair = threadIdx.x; pair < half; pair += THREADS) {
            f64 plain = pow(theta, -2.0 * f64(pair) / f64(dims)), frequency = plain;
            if (scaling == LINEAR) frequency = plain / factor;
            if (scaling == LLAMA3) {
                f64 keep = (original * plain / TURN - low) / (high - low);
                keep = keep < 0.0 ? 0.0 : keep > 1.0 ? 1.0 : keep;
                frequency = (1.0 - keep) * plain / factor + keep * plain;
            }
            f64 angle = sign * frequency * f64(first + position);
            angles[pair] = f32(cos(angle));
            angles[half + pair] = f32(sin(angle));
        }
        __syncthreads();
        u32 each = packs + (x == y ? 0 : rest_packs);
        for (u32 item = threadIdx.x; item < batch * heads * each; item += THREADS) {
            u32 head = item / each, i = item % each * PACK;
            u64 row = u64(head / heads) * seq + position, start = (row * heads + head % heads) * width;
            if (i / PACK >= packs) { // what is not rotated
                f32 v[PACK];
                load(x + start + dims, i - packs * PACK, rest, v);
                store(y + start + dims, i - packs * PACK, rest, v);
                continue;
            }
            f32 a[PACK], b[PACK], u[PACK], v[PACK];
            load(x + start, i, half, a);
            load(x + start + half, i, half, b);
            EACH(k) {
                f32 cosine = i + k < half ? angles[i + k] : 0.0f, sine = i + k < half ? angles[half + i + k] : 0.0f;
                u[k] = a[k] * cosine - b[k] * sine;
                v[k] = b[k] * cosine + a[k] * sine;
            }
            store(y + start, i, half, u);
            store(y + start + half, i, half, v);
        }
    }
}
