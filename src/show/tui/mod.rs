//! The terminal explorer of trade-offs: what is chosen, what is known of it, and the frames that show both. Nothing here reads a
//! clock, a file or a terminal.

pub mod dial;
pub mod found;
pub mod found_torch;
pub mod keys;
pub mod palette;
pub mod prompt;
pub mod rows;
pub mod settings;
pub mod spans;
pub mod state;
mod turning;
pub mod view;
