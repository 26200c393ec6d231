// Activations, alone and as gates, and their derivatives.
//
// Floor: each value once, at the bandwidth of memory: 2 an element for act, 3 for its derivative and for a gate, 5 for a gate's. The
// functions take 1 to 40 operations an element, below what hides behind the reads.
//
// Compiled for: T, CURVE (relu, gelu, gelu_tanh, silu).

// Each gives a value and a slope; where one is not used, the compiler drops it.
DEVICE void relu(f32 x, f32 &value, f32 &slope) {
    value = x <= 0.0f ? 0.0f : x;
    slope = x <= 0.0f ? 0.0f : 1.0f;
}
DEVICE void gelu(f32 x, f32 &value, f32 &slope) {
    f32 below, density;
    normal(x, below, density);
    value = x * below;
    slope = below + x * density;
}
DEVICE void gelu_tanh(f32 x, f32 &value, f32 &slope) {
    const f32 TWICE_ROOT = 1.595769f, CUBE = 0.044715f;
    f32 gate = sigmoid(TWICE_ROOT * (x + CUBE * x * x * x));
    f32 inner = TWICE_ROOT * (1.0f + 3.0f * CUBE * x * x);
    value = x * gate;
    slope = gate + x * gate * (1.0f - gate) * inner;
}
DEVICE void silu(f32 x, f32 &value, f32 &slope) {
    f32 gate = sigmoid(x);
    value = x * gate;
    slope = gate * (1.0f + x * (1.0f - gate));
}

// y = act(x)
KERNEL(act, const T *x, T *y, u64 n) {
    EACH_PACK(i, n) {
        f32 v[PACK], slope;
        load(x, i, n, v);
        EACH(k) CURVE(v[k], v[k], slope);
        store(y, i, n, v);
    }
}

// dx = dy act'(x); dx may be dy
KERNEL(act_backward, const T *dy, const T *x, T *dx, u64 n) {
    EACH_PACK(i, n) {
        f32 g[PACK], v[PACK], value, slope;
        load(dy, i, n, g);
        load(x, i, n, v);
        EACH(k) {
            CURVE(v[k], value, slope);
            g[k] = g[k] * slope;
        }
        store(dx, i, n, g);
    }
}

// y = act(gate) up
KERNEL(gated, const T *gate, const T *up, T *y, u64 n) {
    EACH_PACK(i, n) {
        f32 a[PACK], b[PACK], value, slope;
        load(gate, i, n, a);
        load(up, i, n, b);
        EACH(k) {
            CURVE(a[k], value, slope);
            a[k] = value * b[k];
        }
        store(y, i, n, a);
    }
}

// dgate = dy up act'(gate), dup = dy act(gate); dup may be dy
KERNEL(gated_backward, const T *dy, const T *gate, const T *up, T *dgate, T *dup, u64 n) {
    EACH_PACK(i, n) {
        f32 g[PACK], a[PACK], b[PACK], value, slope;
        load(dy, i, n, g);
        load(gate, i, n, a);
        load(up, i, n, b);
        EACH(k) {
            CURVE(a[k], value, slope);
            b[k] = g[k] * b[k] * slope;
            g[k] = g[k] * value;
        }
        store(dgate, i, n, b);
        store(dup, i, n, g);
    }
}

// dy = dgate up act'(gate) + dup act(gate); dy may be dup
KERNEL(gated_tangent, const T *dgate, const T *dup, const T *gate, const T *up, T *dy, u64 n) {
    EACH_PACK(i, n) {
        f32 u[PACK], v[PACK], a[PACK], b[PACK], value, slope;
        load(dgate, i, n, u);
        load(dup, i, n, v);
        load(gate, i, n, a);
        load(up, i, n, b);
        EACH(k) {
            CURVE(a[k], value, slope);
            u[k] = u[k] * b[k] * slope + v[k] * value;
        }
        store(dy, i, n, u);
    }
}
