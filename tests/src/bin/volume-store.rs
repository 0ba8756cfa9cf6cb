//! Tries the storages beside PVE with real tools on real storages:
//! `volume-store dir:<folder> btrfs:<mounted folder> lvmthin:<vg>/<pool> [lvm:<vg>] [zfspool:<pool>]`.
//! A line for each case, and `N passed, N failed` at the end. As root, in a throw-away guest.
#![allow(clippy::print_stdout, reason = "it is a program for people")]

use std::process::ExitCode;

use pvelet_tests::volume_store;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, spec, format, from, to] = arguments.as_slice()
        && first == "copy-for-a-killed-agent"
    {
        volume_store::copy_for_a_killed_agent(spec, format, from, to).await;
        return ExitCode::SUCCESS;
    }
    if arguments.is_empty() {
        println!("volume-store dir:<folder> btrfs:<mounted folder> lvmthin:<vg>/<pool> [lvm:<vg>] [zfspool:<pool>]");
        return ExitCode::FAILURE;
    }
    let (passed, failed) = volume_store::run(&arguments).await;
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
