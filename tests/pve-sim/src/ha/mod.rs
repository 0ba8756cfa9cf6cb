//! A simple HA manager: it carries out what stands in `ha/resources.cfg`, a while after it was asked to, possibly on another node.

mod manager;
mod resources;

pub(crate) use manager::config_path;
pub use manager::{Manager, Mode};
pub use resources::{Resource, Wanted, format, parse};
