//! How projectors are renewed on a GPU: what lies where in the scratch, and the launches in their order.

use super::fit::{PANEL, Sizes, rates};
use super::renew::Renew;
use crate::graph::op::kernel::{
    Argument, Call, Gemm, Kernel, Launch, Matrix, Memory, SHARED, THREADS, Task, at, input, output,
    scratch,
};
use crate::graph::tensor::DType;

/// Warps of a block.
const WARPS: u64 = THREADS as u64 / 32;

/// Offsets in the scratch.
#[derive(Debug, Default)]
pub(super) struct Room {
    state: u64,
    sums: u64,
    /// `Pᵀ G`, `S Qᵀ` and `Pᵀ E` (d, n); the first two later hold the new moments.
    pg: u64,
    sq: u64,
    pe: u64,
    /// `S`, `S Qᵀ Q` and `Pᵀ E Q` (d, d); later both overlaps, and half a product.
    s: u64,
    sqq: u64,
    peq: u64,
    slope: u64,
    m: u64,
    v: u64,
    /// Values and columns of the projectors that were and that come, of P and then of Q.
    old: Projectors,
    new: Projectors,
    /// Non-zeros by columns, of P and of Q.
    lists: [List; 2],
    /// Bytes of all.
    pub(super) bytes: u64,
}

/// Offsets of values and columns.
#[derive(Debug, Default, Clone, Copy)]
struct Projectors {
    values: u64,
    columns: u64,
}

/// Offsets of where each column's non-zeros begin, and of their places.
#[derive(Debug, Default, Clone, Copy)]
struct List {
    starts: u64,
    items: u64,
}

impl Room {
    pub(super) fn of(sizes: Sizes) -> Room {
        let [m, n, d, r] = lengths(sizes);
        let (panel, square, values) = (4 * d * n.max(d), 4 * d * d, (m + n) * r);
        let mut room = Room::default();
        let mut part = |bytes: u64| {
            let from = room.bytes;
            room.bytes += bytes.next_multiple_of(256);
            from
        };
        let state = part(64);
        let sums = part(8 * chunks(sizes).max(panels(sizes)));
        let [pg, sq, pe] = [panel; 3].map(&mut part);
        let [s, sqq, peq] = [square; 3].map(&mut part);
        let [slope, first, second] = [4 * values; 3].map(&mut part);
        let [old, new] = [(); 2].map(|()| Projectors {
            values: part(4 * values),
            columns: part(2 * values),
        });
        let lists = [m, n].map(|rows| List {
            starts: part(4 * (d + 1)),
            items: part(4 * rows * r),
        });
        Room {
            state,
            sums,
            pg,
            sq,
            pe,
            s,
            sqq,
            peq,
            slope,
            m: first,
            v: second,
            old,
            new,
            lists,
            bytes: room.bytes,
        }
    }

    /// The flags of the state (`State` in the kernels).
    fn look(&self) -> Argument {
        scratch(self.state + 8)
    }
    fn renews(&self) -> Argument {
        scratch(self.state + 12)
    }
    fn fits(&self) -> Argument {
        scratch(self.state + 16)
    }
}

impl List {
    fn given(self) -> [Argument; 2] {
        [self.starts, self.items].map(scratch)
    }
}

fn lengths(sizes: Sizes) -> [u64; 4] {
    [sizes.rows, sizes.columns, sizes.width, sizes.per_row].map(|x| x as u64)
}

/// Elements of the gradient that are squared together.
fn chunks(sizes: Sizes) -> u64 {
    (sizes.rows * sizes.columns).div_ceil(1024) as u64
}

fn panels(sizes: Sizes) -> u64 {
    sizes.columns.div_ceil(PANEL) as u64
}

/// What launches are made from.
struct Plan<'a> {
    op: &'a Renew,
    call: &'a Call<'a>,
    sizes: Sizes,
    room: Room,
}

/// All of a renewal; none where a row of a moment is too long for a block's memory.
pub(super) fn kernel(op: &Renew, call: &Call, sizes: Sizes) -> Kernel {
    let [m, n, d, _] = lengths(sizes);
    if 8 * d > SHARED || m.max(n).max(d) > u64::from(u32::MAX) / 4 {
        return Kernel::Missing;
    }
    let plan = Plan {
        op,
        call,
        sizes,
        room: Room::of(sizes),
    };
    let mut launches = plan.begin();
    launches.extend(plan.look());
    launches.extend(plan.fitted());
    launches.extend(plan.overlaps());
    let mut tasks: Vec<_> = launches.into_iter().map(Task::Launch).collect();
    tasks.extend(plan.carried());
    Kernel::Run(tasks)
}

impl Plan<'_> {
    fn launch(&self, entry: &'static str) -> Launch {
        let launch = Launch::new("lsp_renew", entry).format("G", self.call.format(0));
        launch.format("V", self.call.format(1))
    }

    /// Thread for each of `columns` in each of `rows`.
    fn wide(&self, entry: &'static str, columns: u64, rows: u64) -> Launch {
        let threads = u64::from(THREADS);
        self.launch(entry).grid(columns.div_ceil(threads), rows, 1)
    }

    /// A thread for each of `count` things.
    fn each(&self, entry: &'static str, count: u64) -> Launch {
        self.launch(entry).each(count)
    }

    /// Values of P and of Q, and how many P has.
    fn counts(&self) -> (u64, u64) {
        let [m, n, _, r] = lengths(self.sizes);
        (m * r, (m + n) * r)
    }

    /// Values and columns of P, then those of Q.
    fn pair(&self, of: Projectors) -> [Argument; 4] {
        let (p, _) = self.counts();
        let q = Projectors {
            values: of.values + 4 * p,
            columns: of.columns + 2 * p,
        };
        [of.values, of.columns, q.values, q.columns].map(scratch)
    }

    /// The gradient's norm and the projectors that are there.
    fn begin(&self) -> Vec<Launch> {
        let (room, (p, all)) = (&self.room, self.counts());
        let elements = self.call.inputs[0].elements();
        let count = chunks(self.sizes);
        let parts = self.launch("lsp_norm_parts").blocks(count.div_ceil(WARPS));
        vec![
            parts.given([input(0), scratch(room.sums), elements.into()]),
            self.launch("lsp_begin")
                .given([scratch(room.sums), count.into(), scratch(room.state)])
                .given([0, 1, 2, 3].map(output))
                .given([room.old.values, room.old.columns].map(scratch))
                .given([p.into(), all.into()]),
        ]
    }

    /// Lists of the columns of both projectors.
    fn lists(&self, of: Projectors, flag: Argument) -> [Launch; 2] {
        let [m, n, d, r] = lengths(self.sizes);
        let [_, p_at, _, q_at] = self.pair(of);
        let [p, q] = self.room.lists;
        [(p_at, p, m), (q_at, q, n)].map(|(columns, list, rows)| {
            let launch = self.launch("lsp_list").grid(d.div_ceil(WARPS), 1, 1);
            let launch = launch.given([columns]).given(list.given());
            launch.given([(rows * r).into(), (d as u32).into(), flag])
        })
    }

    /// What projectors leave out of the gradient, and whether that is little enough.
    fn outside(&self, of: Projectors, flag: Argument) -> Vec<Launch> {
        let [m, n, d, r] = lengths(self.sizes);
        let room = &self.room;
        let [p, p_at, q, q_at] = self.pair(of);
        let [p_list, q_list] = room.lists.map(List::given);
        let (length, per_row) = (n.into(), (r as u32).into());
        let is_look = u32::from(flag == room.look());
        vec![
            (self.wide("lsp_project", n, d).given([input(0), p]))
                .given(p_list)
                .given([scratch(room.pg), length, per_row, flag]),
            self.narrow(room.pg, q, q_list, room.s, flag),
            self.wide("lsp_widen", n, d)
                .given([scratch(room.s), q, q_at, scratch(room.sq)])
                .given([length, d.into(), per_row, flag]),
            (self.launch("lsp_squares").grid(panels(self.sizes), 1, 1))
                .given([input(0), p, p_at, scratch(room.sq), scratch(room.sums)])
                .given([m.into(), length, per_row, flag]),
            self.launch("lsp_decide")
                .given([scratch(room.sums), panels(self.sizes).into()])
                .given([
                    scratch(room.state),
                    self.op.threshold.into(),
                    is_look.into(),
                ]),
        ]
    }

    /// `x Q` (d, d) of an x (d, n).
    fn narrow(&self, x: u64, q: Argument, list: [Argument; 2], to: u64, flag: Argument) -> Launch {
        let [_, n, d, r] = lengths(self.sizes);
        (self.wide("lsp_narrow", d, d).given([scratch(x), q]))
            .given(list)
            .given([scratch(to), n.into(), d.into(), (r as u32).into(), flag])
    }

    /// A look at the projectors that are there.
    fn look(&self) -> Vec<Launch> {
        let flag = self.room.look();
        let mut launches = self.lists(self.room.old, flag).to_vec();
        launches.extend(self.outside(self.room.old, flag));
        launches
    }

    /// New ones, drawn, fitted and put in their place.
    fn fitted(&self) -> Vec<Launch> {
        let [m, n, d, r] = lengths(self.sizes);
        let (room, (count, all)) = (&self.room, self.counts());
        let [p, p_at, q, q_at] = self.pair(room.new);
        let deviation = 1.0 / (r as f32).sqrt();
        let draw = |part, values, columns, rows: u64| {
            self.each("lsp_draw", rows)
                .given([values, columns, rows.into(), (d as u32).into()])
                .given([(r as u32).into(), self.call.key.part(part).0.into()])
                .given([deviation.into(), room.renews()])
        };
        let mut launches = vec![draw(0, p, p_at, m), draw(1, q, q_at, n)];
        launches.extend(self.lists(room.new, room.renews()));
        for turn in 0..self.op.fit {
            launches.extend(self.outside(room.new, room.fits()));
            launches.extend(self.descended(turn));
        }
        let place = self.each("lsp_place", all);
        let place = place.given([room.new.values, room.new.columns].map(scratch));
        let place = place.given([0, 1, 2, 3].map(output));
        launches.push(place.given([count.into(), all.into(), room.renews()]));
        launches
    }

    /// One turn of the fit, after what is left out is known.
    fn descended(&self, turn: u32) -> Vec<Launch> {
        let [m, n, d, r] = lengths(self.sizes);
        let (room, (count, all)) = (&self.room, self.counts());
        let [p, p_at, q, q_at] = self.pair(room.new);
        let [p_list, q_list] = room.lists.map(List::given);
        let (length, per_row, flag) = (n.into(), (r as u32).into(), room.fits());
        let sizes = [length, d.into(), per_row, scratch(room.state)];
        let (root, rate) = rates(turn, self.op.fit);
        vec![
            self.wide("lsp_left", n, d)
                .given([input(0), p, p_at, scratch(room.sq)])
                .given(p_list)
                .given([scratch(room.pe), length, per_row, flag]),
            self.narrow(room.sq, q, q_list, room.sqq, flag),
            self.narrow(room.pe, q, q_list, room.peq, flag),
            (self.launch("lsp_slope_p").grid(m, 1, 1).shared(8 * d))
                .given([input(0), p, p_at, q])
                .given(q_list)
                .given([room.s, room.sqq, room.peq, room.slope].map(scratch))
                .given(sizes),
            (self.wide("lsp_slope_q", n, r).given([q_at]))
                .given([room.pg, room.pe, room.s, room.peq].map(scratch))
                .given([scratch(room.slope + 4 * count)])
                .given(sizes),
            self.each("lsp_descend", all)
                .given([room.new.values, room.slope, room.m, room.v].map(scratch))
                .given([all.into(), ((2.0 * self.op.beta) as f32).into()])
                .given([root.into(), rate.into(), u32::from(turn == 0).into(), flag]),
        ]
    }

    /// How new projectors lie to old ones: `Pᵀ P₀` and `Q₀ᵀ Q`.
    fn overlaps(&self) -> [Launch; 2] {
        let [_, _, d, r] = lengths(self.sizes);
        let room = &self.room;
        let [p, _, q, _] = self.pair(room.new);
        let [old_p, old_p_at, old_q, old_q_at] = self.pair(room.old);
        let [p_list, q_list] = room.lists.map(List::given);
        let overlap = |new, list, old, old_at, into, is_transposed: u32| {
            let launch = self.launch("lsp_overlap").grid(d.div_ceil(WARPS), 1, 1);
            (launch.given([new]).given(list))
                .given([old, old_at, scratch(into), (d as u32).into()])
                .given([(r as u32).into(), is_transposed.into(), room.renews()])
        };
        [
            overlap(p, p_list, old_p, old_p_at, room.s, 0),
            overlap(q, q_list, old_q, old_q_at, room.sqq, 1),
        ]
    }

    /// Both moments, between the overlaps and between their squares. Products cannot be left out: what they make is taken or not.
    fn carried(&self) -> Vec<Task> {
        let [_, _, d, _] = lengths(self.sizes);
        let room = &self.room;
        let square = |of, offset| Matrix {
            at: at(of, offset),
            ..Matrix::new(of, DType::F32, d)
        };
        let local = |offset| square(Memory::Scratch, offset);
        let product = |a, b, into| Task::Gemm(Gemm::new((d, d, d), a, b, into));
        let between = |moment, into| {
            let half = local(room.peq);
            let first = product(local(room.s), square(Memory::Output(moment), 0), half);
            [first, product(half, local(room.sqq), local(into))]
        };
        let squares = self.each("lsp_square", d * d);
        let squares = squares.given([room.s, room.sqq].map(scratch));
        let take = self.each("lsp_take", d * d);
        let take = take.given([room.pg, room.sq].map(scratch));
        let take = take.given([output(4), output(5), (d * d).into(), room.renews()]);
        let mut tasks = between(4, room.pg).to_vec();
        tasks.push(Task::Launch(squares.given([(d * d).into()])));
        tasks.extend(between(5, room.sq));
        tasks.push(Task::Launch(take));
        tasks
    }
}
