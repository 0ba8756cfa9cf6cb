//! The Debian packages: what is in them, and how they are installed, upgraded, refused, removed and purged in a Debian 12. `make test-deb`.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod contents;
mod life;
mod package;
mod root;
mod systemd;
mod units;
