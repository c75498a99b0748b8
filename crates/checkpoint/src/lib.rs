//! Model files as named tensors that are read lazily, and loading them into a module.
//!
//! A checkpoint is memory-mapped; opening it reads only its header. [`load`] compares every name and shape with the
//! module's before any data is read, then reads tensor by tensor. The crate knows file formats, not the mathematics
//! of models: a file's description of its model is returned as the JSON of a `config.json`.
//!
//! | format | types |
//! |---|---|
//! | safetensors, one file or shards, with `model.safetensors.index.json` or all of them | F64, F32, F16, BF16 |
//! | burnpack | F64, F32, F16, BF16 |
//! | GGUF version 2 and 3, one file or split | F32, F16, BF16, F64 and the block formats of [`BlockFormat`] |

mod arena;
mod burnpack;
mod checkpoint;
mod error;
mod file;
mod finite;
pub mod gguf;
mod load;
mod made;
mod packed;
mod quantised;
mod safetensors;
mod select;
mod shards;
mod storage;
mod tensor;
mod unique;

pub use burnpack::{BURNPACK_FILE, open_burnpack};
pub use checkpoint::Checkpoint;
pub use error::{CheckpointError, TensorProblem};
pub use file::{CONFIG_BYTES, INDEX_BYTES, is_there, open_file, parse_json, read_file, shown};
pub use finite::NotFinite;
pub use load::{LoadProgress, Upload, load};
pub use moi_files::PartName;
pub use moi_formats::BlockFormat;
pub use moi_formats::{ExpertStacks, PairedRows, RowBlocks};
pub use quantised::{Quantisation, QuantisedFormat};
pub use safetensors::{INDEX_FILE, SINGLE_FILE, open_quantised_safetensors, open_safetensors};
pub use select::Parameter;
pub use storage::{CodeType, Storage};
pub use tensor::LazyTensor;
