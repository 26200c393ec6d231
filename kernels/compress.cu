// Values held as integers of 8 or 4 bits, with a range for each block.
//
// Floor: values once and codes once, at the bandwidth of memory; a block is read again from the cache.
//
// Compiled for: T, BITS (8 or 4), RANDOM (whether numbers are rounded by chance), ROW (threads of a block of values: 32 or THREADS).

DEVICE f32 row_max(f32 x, f32 *room) { return ROW == 32 ? warp_max(x) : block_max(x, room); }

#define EACH_BLOCK(b, blocks)                                                                                          \
    for (u64 b = u64(blockIdx.x) * (THREADS / ROW) + threadIdx.x / ROW; b < (blocks); b += u64(gridDim.x) * (THREADS / ROW))

// held: the least and the width of a step (f32 each) of every block, then codes
KERNEL(compress, const T *x, f32 *held, u64 n, u64 block, u64 key) {
    SHARED(f32, room, WARPS);
    u64 blocks = (n + block - 1) / block;
    u8 *codes = reinterpret_cast<u8 *>(held + 2 * blocks);
    const f32 MOST = (1 << BITS) - 1;
    EACH_BLOCK(b, blocks) {
        u64 first = b * block, end = first + block < n ? first + block : n;
        f32 above = -INFINITE, below = -INFINITE;
        for (u64 i = first + threadIdx.x % ROW * PACK; i < end; i += ROW * PACK) {
            f32 v[PACK];
            load(x, i, end, v);
            EACH(k) if (i + k < end) {
                above = v[k] > above ? v[k] : above;
                below = -v[k] > below ? -v[k] : below;
            }
        }
        above = row_max(above, room);
        f32 least = -row_max(below, room), width = (above - least) / MOST;
        f32 inverse = width > 0.0f ? 1.0f / width : 0.0f;
        if (threadIdx.x % ROW == 0) {
            held[2 * b] = least;
            held[2 * b + 1] = width;
        }
        for (u64 i = first + threadIdx.x % ROW * PACK; i < end; i += ROW * PACK) {
            f32 v[PACK];
            u32 steps[PACK];
            load(x, i, end, v);
            EACH(k) {
                f32 up = RANDOM ? uniform(key, i + k) : 0.5f, step = (v[k] - least) * inverse + up;
                steps[k] = i + k < end && step > 0.0f ? u32(step > MOST ? MOST : step) : 0;
            }
            if (i + PACK <= end && is_packed(codes + i) && BITS == 8) {
                Pack<u8> pack;
                EACH(k) pack.at[k] = steps[k];
                *reinterpret_cast<Pack<u8> *>(codes + i) = pack;
            } else if (i + PACK <= end && u64(codes + i / 2) % 4 == 0 && BITS == 4) {
                u32 pack = 0;
                EACH(k) pack |= steps[k] << 4 * k;
                *reinterpret_cast<u32 *>(codes + i / 2) = pack;
            } else if (BITS == 8) {
                EACH(k) if (i + k < end) codes[i + k] = steps[k];
            } else {
#pragma unroll
                for (u32 k = 0; k < PACK; k += 2)
                    if (i + k < end) codes[(i + k) / 2] = steps[k] | steps[k + 1] << 4;
            }
        }
    }
}

KERNEL(decompress, const f32 *held, T *x, u64 n, u64 block) {
    u64 blocks = (n + block - 1) / block;
    const u8 *codes = reinterpret_cast<const u8 *>(held + 2 * blocks);
    EACH_PACK(i, n) {
        f32 v[PACK];
        if (block % PACK == 0 && i + PACK <= n && is_packed(codes)) { // one range for all eight
            u64 b = i / block;
            f32 least = held[2 * b], width = held[2 * b + 1];
            u64 bytes = BITS == 8 ? *reinterpret_cast<const u64 *>(codes + i) : u64(*reinterpret_cast<const u32 *>(codes + i / 2));
            EACH(k) v[k] = least + width * f32(u32(bytes >> BITS * k) & ((1 << BITS) - 1));
            store(x, i, n, v);
            continue;
        }
        EACH(k) {
            u64 at = i + k < n ? i + k : n - 1, b = at / block;
            u32 step = BITS == 8 ? codes[at] : codes[at / 2] >> (at % 2 * 4) & 15;
            v[k] = held[2 * b] + held[2 * b + 1] * f32(step);
        }
        store(x, i, n, v);
    }
}
