//! What a change does: a pure function of the own file, the wish, and the kernel.

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use crate::host::net::Step;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// This network, whether it exists or not.
    Apply(Definition),
    /// No network of this name.
    Remove(String),
}

/// What a change does. It stands in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What is brought down and up, in this order.
    pub steps: Vec<Step>,
    /// The own file before; `None`: there was none.
    pub old_text: Option<String>,
    /// The own file after; `None`: there is none.
    pub new_text: Option<String>,
    /// The interfaces of the change that are declared afterwards.
    pub wanted: Vec<super::definition::Interface>,
    /// Interfaces that are declared before and not afterwards.
    pub gone: Vec<String>,
    /// For people: one line for each change, with `+`, `-` or `~` in front.
    pub changes: Vec<String>,
}

impl Plan {
    /// Whether all is so already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.old_text == self.new_text
    }
}
