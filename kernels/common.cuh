// What all kernels are written in: number formats, eight numbers at a time, sums in one order, the random stream, elementary functions.
//
// NVRTC compiles it without any header, in front of one `<stem>.cu`; tests compile it for a CPU behind `tests/kernels/emulator.hpp`,
// which sets EMULATED. Products and sums are not contracted (`--fmad=false`): what is meant to be fused says `fmaf`. So elementary
// functions, and all that works element by element, have the bits of their definition in `src/graph/op/`.
// No kernel adds floats atomically, and no sum's order depends on the grid.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

#define THREADS 256
#define WARPS (THREADS / 32)
#define RESIDENT 1

#ifndef EMULATED
#define DEVICE __device__ __forceinline__
// A kernel of blocks of THREADS threads, of which RESIDENT must find room on a multiprocessor.
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) name(__VA_ARGS__)
// Shared memory of a size known when it is compiled, and of the size given at the launch.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYNAMIC(type, name)                                                                                            \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                                    \
    type *name = reinterpret_cast<type *>(dynamic_shared)
#endif

#define INFINITE __uint_as_float(0x7f800000u)

// bfloat16 and IEEE half, as bits.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

DEVICE f32 wide(f32 x) { return x; }
DEVICE f32 wide(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
DEVICE f32 wide(f16 x) {
#ifndef EMULATED
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return emulator::half_to_float(x.bits);
#endif
}

// Rounded to nearest even.
template <class T> DEVICE T narrow(f32 x);
template <> DEVICE f32 narrow<f32>(f32 x) { return x; }
template <> DEVICE bf16 narrow<bf16>(f32 x) {
    bf16 y;
#ifndef EMULATED
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    u32 bits = __float_as_uint(x);
    y.bits = x != x ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#endif
    return y;
}
template <> DEVICE f16 narrow<f16>(f32 x) {
    f16 y;
#ifndef EMULATED
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    y.bits = emulator::float_to_half(x);
#endif
    return y;
}

// Eight numbers, moved 16 bytes at a time.
#define PACK 8
template <class T> struct alignas(sizeof(T) == 1 ? 8 : 16) Pack {
    T at[PACK];
};

template <class T> DEVICE bool is_packed(const T *x) { return (u64(x) & (alignof(Pack<T>) - 1)) == 0; }

// x[i..i + 8], cut at n, widened; what lies beyond n is 0.
template <class T> DEVICE void load(const T *x, u64 i, u64 n, f32 (&into)[PACK]) {
    if (i + PACK <= n && is_packed(x + i)) {
        Pack<T> pack = *reinterpret_cast<const Pack<T> *>(x + i);
#pragma unroll
        for (u32 k = 0; k < PACK; ++k) into[k] = wide(pack.at[k]);
    } else {
#pragma unroll
        for (u32 k = 0; k < PACK; ++k) into[k] = i + k < n ? wide(x[i + k]) : 0.0f;
    }
}

// x[i..i + 8] = from, cut at n and rounded.
template <class T> DEVICE void store(T *x, u64 i, u64 n, const f32 (&from)[PACK]) {
    if (i + PACK <= n && is_packed(x + i)) {
        Pack<T> pack;
#pragma unroll
        for (u32 k = 0; k < PACK; ++k) pack.at[k] = narrow<T>(from[k]);
        *reinterpret_cast<Pack<T> *>(x + i) = pack;
    } else {
#pragma unroll
        for (u32 k = 0; k < PACK; ++k)
            if (i + k < n) x[i + k] = narrow<T>(from[k]);
    }
}

// The elements that a thread of a one-dimensional grid takes: eight from each `i` on.
#define EACH_PACK(i, n)                                                                                                \
    for (u64 i = (u64(blockIdx.x) * THREADS + threadIdx.x) * PACK; i < (n); i += u64(gridDim.x) * THREADS * PACK)
#define EACH(k) _Pragma("unroll") for (u32 k = 0; k < PACK; ++k)

DEVICE u32 lane() { return threadIdx.x % 32; }
DEVICE u32 warp() { return threadIdx.x / 32; }

// The sum or the greatest over a warp, the same in all lanes: a butterfly.
template <class T> DEVICE T warp_sum(T x) {
#pragma unroll
    for (u32 apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
}
DEVICE f32 warp_max(f32 x) {
#pragma unroll
    for (u32 apart = 16; apart > 0; apart /= 2) {
        f32 other = __shfl_xor_sync(~0u, x, apart);
        x = other > x ? other : x;
    }
    return x;
}

// The sum or the greatest over a block, the same in all threads: butterflies, then warps in their order. `room` is shared.
template <class T> DEVICE T block_sum(T x, T *room) {
    x = warp_sum(x);
    __syncthreads(); // the last sum has been read
    if (lane() == 0) room[warp()] = x;
    __syncthreads();
    x = room[0];
#pragma unroll
    for (u32 w = 1; w < WARPS; ++w) x += room[w];
    return x;
}
DEVICE f32 block_max(f32 x, f32 *room) {
    x = warp_max(x);
    __syncthreads();
    if (lane() == 0) room[warp()] = x;
    __syncthreads();
    x = room[0];
#pragma unroll
    for (u32 w = 1; w < WARPS; ++w) x = room[w] > x ? room[w] : x;
    return x;
}

// The random stream of `src/graph/random.rs`: a value is a function of key and index.
DEVICE u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
DEVICE u64 random_bits(u64 key, u64 index) { return mix(key + index * 0x9e3779b97f4a7c15ull); }
DEVICE f32 uniform(u64 key, u64 index) { return f32(random_bits(key, index) >> 40) * (1.0f / 16777216.0f); }
DEVICE u64 key_part(u64 key, u64 index) { return mix(key ^ mix(index + 0x9e3779b97f4a7c15ull)); }

// The functions of `src/graph/op/simd.rs`, operation by operation.
DEVICE f32 exp_f32(f32 x) {
    const f32 LOWEST = -87.3f, HIGHEST = 88.3f, ROUND = 12582912.0f;
    f32 held = x < LOWEST ? LOWEST : x > HIGHEST ? HIGHEST : x;
    f32 shifted = held * 1.44269504f + ROUND;
    f32 n = shifted - ROUND;
    f32 r = held - n * 0.6933594f - n * -2.1219444e-4f;
    f32 tail = (((1.3926268e-3f * r + 8.363247e-3f) * r + 4.1666554e-2f) * r + 1.6666577e-1f) * r + 0.5f;
    f32 power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    f32 y = (r * r * tail + r + 1.0f) * power;
    y = x < LOWEST ? 0.0f : y;
    return x > HIGHEST ? INFINITE : y;
}
DEVICE f32 sigmoid(f32 x) { return 1.0f / (1.0f + exp_f32(-x)); }
DEVICE f32 tanh_f32(f32 x) {
    f32 square = x * x;
    f32 p = (((-6.0451653e-3f * square + 2.096133e-2f) * square + -5.3843263e-2f) * square + 1.3332719e-1f) * square +
            -3.3333328e-1f;
    f32 near = x + x * square * p;
    f32 size = fabsf(x);
    f32 far = copysignf(1.0f - 2.0f / (exp_f32(2.0f * size) + 1.0f), x);
    return size < 0.625f ? near : far;
}
// erfc z for z >= 0, given e^(-z^2).
DEVICE f32 erfc_tail(f32 z, f32 exp_square) {
    f32 t = 1.0f / (1.0f + 0.4f * z);
    f32 p = 5.1346485e-2f;
    p = p * t + -1.8732549e-1f;
    p = p * t + 1.7642793e-1f;
    p = p * t + -1.1961573e-2f;
    p = p * t + 1.4448134e-1f;
    p = p * t + 1.6774629e-1f;
    p = p * t + 2.0794466e-1f;
    p = p * t + 2.2566463e-1f;
    p = p * t + 2.256759e-1f;
    return t * p * exp_square;
}
// The standard normal's distribution and density.
DEVICE void normal(f32 x, f32 &below, f32 &density) {
    f32 exp_square = exp_f32(-0.5f * x * x);
    f32 tail = 0.5f * erfc_tail(fabsf(x) * 0.70710678f, exp_square);
    below = x < 0.0f ? tail : 1.0f - tail;
    density = 0.3989423f * exp_square;
}

// Number `code` of the dynamic maps of `src/graph/op/dynamic.rs`, as they are sorted there.
DEVICE f32 dynamic_positive(u32 exponent, u32 part, u32 parts) {
    const f32 POWERS[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    f32 step = (1.0f - 0.1f) / f32(parts), bounds[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        u32 at = part + i;
        bounds[i] = at < (parts + 1) / 2 ? fmaf(step, f32(at), 0.1f) : fmaf(-step, f32(parts - at), 1.0f);
    }
    return POWERS[exponent] * ((bounds[0] + bounds[1]) / 2.0f);
}
DEVICE f32 dynamic_value(u32 code, bool is_signed) {
    if (code == 255) return 1.0f;
    if (is_signed) {
        if (code == 127) return 0.0f;
        u32 j = code > 127 ? code - 127 : 127 - code, exponent = 31 - __clz(j);
        f32 value = dynamic_positive(exponent, j - (1u << exponent), 1u << exponent);
        return code > 127 ? value : -value;
    }
    if (code == 0) return 0.0f;
    u32 j = code + 1, exponent = 31 - __clz(j);
    return dynamic_positive(exponent - 1, j - (1u << exponent), 1u << exponent);
}

// A map in shared memory, with what lies halfway to each next number; made by all threads of a block.
DEVICE void dynamic_map(f32 *values, f32 *middles, bool is_signed) {
    u32 code = threadIdx.x;
    values[code] = dynamic_value(code, is_signed);
    if (middles) middles[code] = code < 255 ? (dynamic_value(code, is_signed) + dynamic_value(code + 1, is_signed)) * 0.5f : INFINITE;
}
// The code of the nearest number, by bisection; the lower of two as near.
DEVICE u32 dynamic_code(const f32 *middles, f32 value) {
    u32 code = 0;
#pragma unroll
    for (u32 half = 128; half > 0; half /= 2) code += value > middles[code + half - 1] ? half : 0;
    return code;
}
