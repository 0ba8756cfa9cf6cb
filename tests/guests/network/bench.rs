//! What a change costs beside ifupdown2's own time: a measurement, not a test. Without KVM the numbers are those of an emulated machine.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    drive::{Drive, Wish},
    lane::Lane,
    networks::{TRUNK, network, vlan, with},
};

const ROUNDS: u32 = 5;
/// In front of each tool: how long it took, in microseconds. `systemd-run` has the steps' `ifup` in it.
const TIMED: &str = "
    for tool in ifup ifquery systemd-run systemctl; do
        real=$(command -v $tool)
        printf '#!/bin/sh\\nb=${EPOCHREALTIME:-$(date +%%s%%6N)}\\n%s \"$@\"\\ns=$?\\ne=$(date +%%s%%6N)\\necho \"%s $1 $((e - b))\" >>/run/times\\nexit $s\\n' $real $tool >/usr/local/sbin/$tool
        chmod 755 /usr/local/sbin/$tool
    done";

/// Measures on one host.
pub fn run(lane: &Lane<'_>) {
    lane.host.guest.sh(TIMED);
    lane.host.restart_agent();
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        lane.host.guest.sh("rm -f /run/times");
        let address = format!("198.51.100.{}/24", lane.host.n);
        let wish = Wish::Apply(network("bench", vec![with(vlan("bond0.100", TRUNK, 100), &[&address])]));
        let drive = Drive::new(lane.host.api());
        let begun = Instant::now();
        let op = lane.applied(&drive, &wish);
        let total = begun.elapsed().as_secs_f64() * 1e3;
        let times = lane.host.guest.sh("cat /run/times");
        let mut of = |what: &str, ms: f64| *sums.entry(what.to_owned()).or_default() += ms / f64::from(ROUNDS);
        let mut tools = 0.0;
        let mut inside = 0.0;
        for line in times.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let (Some(tool), Some(first), Some(ms)) = (words.first(), words.get(1), words.last().and_then(|w| w.parse::<f64>().ok()))
            else {
                continue;
            };
            let ms = ms / 1e3;
            match (*tool, *first) {
                ("ifup", "-s") => of("ifup -s", ms),
                ("ifup", _) => {
                    inside += ms;
                    of("ifup (in the unit)", ms);
                    continue;
                }
                ("systemd-run", _) => of("systemd-run, ifup included", ms),
                (tool, _) => of(tool, ms),
            }
            tools += ms;
        }
        of("total, seen by the client", total);
        of("the agent itself", total - tools);
        of("systemd-run beside ifup", -inside);
        lane.wait(drive.confirm(&op.name)).unwrap();
        lane.wait(drive.finish()).unwrap();
        lane.change(&Wish::Remove("bench".into()));
    }
    let run = sums.get("systemd-run, ifup included").copied().unwrap_or_default();
    sums.entry("systemd-run beside ifup".into()).and_modify(|ms| *ms += run);
    println!("apply of one VLAN, mean of {ROUNDS}:");
    for (what, ms) in &sums {
        println!("  {what:<28} {ms:>8.1} ms");
    }
}
