// Weights of 4 and 8 bits, widened panel by panel in front of a product.
//
// Floor: codes read and the panel written, at the bandwidth of memory: 0.5 or 1 byte and 2 bytes an element; two operations each.
//
// Compiled for: T, FORMAT (NF4, NF4 with absmaxes quantized again, INT8).

#define NF4 0
#define NF4_DOUBLE 1
#define INT8 2

// The range of a block of elements.
DEVICE f32 most_of(const f32 *map, const void *absmax, const f32 *nested, const f32 *offset, u64 share) {
    if (FORMAT == NF4_DOUBLE) return map[static_cast<const u8 *>(absmax)[share]] * nested[share / 256] + offset[0];
    return static_cast<const f32 *>(absmax)[share];
}

// Elements (rows, width) of a weight with `columns` to a row, from element `first` on, into a contiguous panel. `block` elements share an absmax
KERNEL(dequantize, const u8 *codes, const void *absmax, const f32 *nested, const f32 *offset, T *panel, u64 rows, u64 width,
       u64 first, u64 columns, u64 block) {
    SHARED(f32, map, 256);
    SHARED(f32, table, 16);
    if (FORMAT == NF4_DOUBLE) dynamic_map(map, nullptr, true);
    if (threadIdx.x == 0) {
        const f32 CODE[16] = {-1.0f,        -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,        0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,  0.562617f,   0.72295684f,  1.0f};
#pragma unroll
        for (u32 i = 0; i < 16; ++i) table[i] = CODE[i];
    }
    __syncthreads();
    u32 packs = u32((width + PACK - 1) / PACK), items = u32(rows) * packs;
    for (u32 item = blockIdx.x * THREADS + threadIdx.x; item < items; item += gridDim.x * THREADS) {
        u64 row = item / packs, i = u64(item % packs) * PACK, from = first + row * columns + i;
        f32 v[PACK];
        // Eight codes that lie side by side and share a range are read at once.
        if (block % PACK == 0 && from % PACK == 0 && i + PACK <= width) {
            f32 most = most_of(map, absmax, nested, offset, from / block);
            if (FORMAT == INT8) {
                Pack<u8> bytes = *reinterpret_cast<const Pack<u8> *>(codes + from);
                EACH(k) v[k] = f32(static_cast<signed char>(bytes.at[k])) * most * 7.874016e-3f;
            } else {
                u32 bytes = *reinterpret_cast<const u32 *>(codes + from / 2);
                EACH(k) v[k] = table[bytes >> (k / 2 * 8 + (k % 2 ? 0 : 4)) & 15] * most;
            }
            store(panel + row * width, i, width, v);
            continue;
        }
        EACH(k) {
            u64 at = from + k, share = at / block;
            if (i + k >= width) {
                v[k] = 0.0f;
                continue;
            }
            f32 most = most_of(map, absmax, nested, offset, share);
            if (FORMAT == INT8) {
                v[k] = f32(static_cast<signed char>(codes[at])) * most * 7.874016e-3f;
            } else {
                u32 byte = codes[at / 2];
                v[k] = table[at % 2 ? byte & 15 : byte >> 4] * most;
            }
        }
        store(panel + row * width, i, width, v);
    }
}
