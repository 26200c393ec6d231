//! The operations that model code and the autograd engine call: what each allocates, what each saves.
//!
//! Every function takes tensors by value or by reference, as Python would drop or keep them: a tensor given by value dies when the
//! operation returns, if nobody else holds it. What is saved follows PyTorch's `derivatives.yaml`.

pub mod attention;
pub mod composite;
pub mod elementwise;
pub mod indexing;
pub mod inplace;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod view;
