//! The controller in a cluster: its own process, with the chart's ServiceAccount and rights, on a real API server, and agents on simulated hosts.

mod bad_input;
mod kills;
mod leadership;
mod main_path;
mod outages;
mod user_data;
