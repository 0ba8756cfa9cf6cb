//! The checks, one file for each matter.

mod cgroup;
mod cni;
mod disabled;
mod format;
mod images;
mod runtime;
mod socket;

pub(super) use cgroup::wanted_driver;
pub(super) use disabled::entries;
pub(super) use format::{Mixup, mixup};
pub(super) use runtime::type_for;
pub(super) use socket::to_compare;

use super::{Finding, Scene};

/// All of them.
pub(super) fn all(scene: &Scene<'_>) -> Vec<Finding> {
    vec![
        format::syntax(scene),
        format::version(scene),
        disabled::disabled(scene),
        runtime::runtime_type(scene),
        cgroup::keys(scene),
        cgroup::driver(scene),
        images::sandbox(scene),
        images::snapshotter(scene),
        cni::cni(scene),
        socket::path(scene),
    ]
}
