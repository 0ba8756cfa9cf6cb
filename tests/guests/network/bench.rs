//! What a change costs over the same one made by hand: a measurement, not a test. In a guest without KVM the numbers are those of an emulated
//! machine; [`here`] measures on the machine it runs on.

use std::{collections::BTreeMap, process::Command, time::Instant};

use pvelet_proto::v1;
use pvelet_tests::Segment;
use tokio::runtime::Runtime;
use tonic::Code;

use crate::{
    drive::{Drive, Wish},
    host::{Api, INSTALL, Lab},
    lane::{Lane, succeeded},
    networks::{TRUNK, bridge, network, vlan, with},
};

const ROUNDS: usize = 9;
/// The network that is made and removed.
const NAME: &str = "bench";
const ADDRESSES: [&str; 2] = ["198.51.100.1/24", "198.51.100.2/24"];
/// By hand: the same file, written so that it is on the disk, and `ifup` as the agent runs it; then the tools that the agent runs beside.
const BY_HAND: &str = r#"
set -e
lap() { local now=${EPOCHREALTIME/./}; echo "$1 $((now - last))"; last=${EPOCHREALTIME/./}; }
own=/etc/network/interfaces.d/pvelet
last=${EPOCHREALTIME/./}
cp /root/bench.interfaces /etc/network/interfaces.d/.new; sync /etc/network/interfaces.d/.new
mv /etc/network/interfaces.d/.new $own; sync /etc/network/interfaces.d
lap 'by hand: the file'
ifup $names
lap 'by hand: ifup'
ifquery -c -o json $names >/dev/null
lap 'alone: ifquery -c'
ifup -s -a -i $own
lap 'alone: ifup -s'
systemd-run --quiet --wait --collect true
lap 'alone: systemd-run --wait true'
systemctl is-active --quiet dbus.service
lap 'alone: systemctl is-active'
python3 -c pass
lap 'alone: python3 -c pass'
/bin/true
lap 'alone: true'
ifdown $names
rm $own
"#;
/// What the agent says itself, of its last change.
const TOOK: &str = "journalctl --sync; journalctl --no-pager --output=cat -u pvelet-agent | grep -o 'took=.* ms: .*' | tail -n 1";
/// From now on each tool tells that it was called.
const COUNTED: &str = r#"
mkdir -p /usr/lib/bench
for tool in ifup ifdown ifquery systemctl systemd-run; do
    real=$(command -v $tool)
    if [ -L "$real" ]; then ln -s "$(readlink -f "$real")" /usr/lib/bench/$tool; rm "$real"; else mv "$real" /usr/lib/bench/$tool; fi
    printf '#!/bin/sh\necho "%s" >>/run/calls\nexec /usr/lib/bench/%s "$@"\n' "$tool $1" $tool >"$real"
    chmod 755 "$real"
done
rm -f /run/calls
"#;

/// What is measured.
struct Bench<'a> {
    /// Runs a script on the host.
    sh: &'a dyn Fn(&str) -> String,
    api: Api,
    runtime: &'a Runtime,
    /// Two that differ in an address, so that a plan of the first tells nothing of the second.
    specs: [v1::NetworkSpec; 2],
    times: BTreeMap<String, Vec<f64>>,
}

/// Measures on one guest: a VLAN on its bond.
pub fn run(lane: &Lane<'_>) {
    let spec = |address: &str| network(NAME, vec![with(vlan("bond0.100", TRUNK, 100), &[address])]);
    let bench = Bench {
        sh: &|script| lane.host.guest.sh(script),
        api: lane.host.api().clone(),
        runtime: &lane.lab.runtime,
        specs: ADDRESSES.map(spec),
        times: BTreeMap::new(),
    };
    bench.all("one VLAN");
}

/// Measures on this machine, which is to be one made for it (`tests/bench/network.sh`): a bridge on a NIC.
pub fn here() {
    let lab = Lab::new(Segment::new().unwrap(), Segment::new().unwrap());
    let sh = |script: &str| {
        let out = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    for file in lab.archives(1) {
        sh(&format!("tar -C / -xf {}", file.display()));
    }
    sh(INSTALL);
    let spec = |address: &str| network(NAME, vec![with(bridge("vmbr9", &["eth2"]), &[address])]);
    let api = lab.api(1, ([192, 0, 2, 1], 7443).into());
    Bench { sh: &sh, api, runtime: &lab.runtime, specs: ADDRESSES.map(spec), times: BTreeMap::new() }.all("one bridge");
}

fn how(planned: bool) -> &'static str {
    if planned { "the agent, planned before" } else { "the agent" }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Bench<'_> {
    fn all(mut self, what: &str) {
        // The agent writes the file that is then written by hand. Just started, it may not know PVE yet.
        loop {
            match self.runtime.block_on(Drive::new(&self.api).carry(&Wish::Apply(self.specs[0].clone()))) {
                Err(status) if status.code() == Code::Unavailable => drop((self.sh)("sleep 0.2")),
                made => break drop(succeeded(made)),
            }
        }
        (self.sh)("cp /etc/network/interfaces.d/pvelet /root/bench.interfaces");
        self.remove();
        for _ in 0..ROUNDS {
            self.by_hand();
            self.apply(false);
            self.remove();
            self.apply(true);
            self.remove();
        }
        self.print(what);
        (self.sh)(COUNTED);
        for planned in [false, true] {
            self.apply(planned);
            let called = (self.sh)("cat /run/calls");
            println!("  {}, programs of the network that are started: {}", how(planned), called.lines().collect::<Vec<_>>().join(", "));
            self.remove();
        }
    }

    fn add(&mut self, what: &str, ms: f64) {
        self.times.entry(what.to_owned()).or_default().push(ms);
    }

    fn by_hand(&mut self) {
        let names: Vec<&str> = self.specs[0].interfaces.iter().map(|i| i.name.as_str()).collect();
        let script = format!("names='{}' bash -s <<'BENCH'\n{BY_HAND}BENCH\n", names.join(" "));
        for line in (self.sh)(&script).lines() {
            if let Some((what, micros)) = line.rsplit_once(' ').and_then(|(what, us)| Some((what, us.parse::<f64>().ok()?))) {
                self.add(what, micros / 1e3);
            }
        }
    }

    /// Makes it, to its end; `planned`: asked for a plan before, as a controller does.
    fn apply(&mut self, planned: bool) {
        let spec = &self.specs[usize::from(!planned)];
        let (drive, wish) = (Drive::new(&self.api), Wish::Apply(spec.clone()));
        let how = how(planned);
        if planned {
            let request = v1::PlanNetworkRequest { network: Some(spec.clone()), remove: String::new() };
            self.runtime.block_on(async { self.api.fresh().agent.network().plan_network(request).await }).unwrap();
            // A controller goes on when it has looked at the other hosts and written down what it does.
            (self.sh)("sleep 1; while systemctl --quiet is-active pvelet-network-check.service; do sleep 0.2; done");
        }
        (self.sh)("rm -f /run/calls");
        let begun = Instant::now();
        let op = self.runtime.block_on(drive.applied(&wish)).unwrap();
        self.add(&format!("{how}: seen by the client"), begun.elapsed().as_secs_f64() * 1e3);
        let took = (self.sh)(TOOK);
        let took = took.trim().trim_start_matches("took=").trim_matches('"');
        if let Some((all, parts)) = took.split_once(" ms: ") {
            let parts = parts.split("; ").filter_map(|p| p.rsplit_once(' '));
            let told = parts.map(|(part, ms)| (format!("{how}, part: {part}"), ms)).chain([(format!("{how}: in all"), all)]);
            for (what, ms) in told.collect::<Vec<_>>() {
                self.add(&what, ms.trim_end_matches('"').parse().unwrap_or(f64::NAN));
            }
        }
        self.runtime.block_on(drive.confirm(&op.name)).unwrap();
        succeeded(self.runtime.block_on(drive.finish()));
    }

    fn remove(&self) {
        succeeded(self.runtime.block_on(Drive::new(&self.api).carry(&Wish::Remove(NAME.into()))));
    }

    fn print(&self, what: &str) {
        let of = |what: &str| self.times.get(what).map(|t| median(t)).unwrap_or_default();
        println!("apply of {what}, medians of {ROUNDS}:");
        for (what, times) in &self.times {
            println!(
                "  {what:<60} {:>8.1} ms   ({:.1} to {:.1})",
                median(times),
                times.iter().copied().fold(f64::MAX, f64::min),
                times.iter().copied().fold(0.0, f64::max)
            );
        }
        let hand = of("by hand: the file") + of("by hand: ifup");
        for how in ["the agent", "the agent, planned before"] {
            println!("  {:<60} {:>8.1} ms", format!("{how}: over by hand"), of(&format!("{how}: in all")) - hand);
            println!(
                "  {:<60} {:>8.1} ms",
                format!("{how}: over what ifup takes by hand"),
                of(&format!("{how}: in all")) - of("by hand: ifup")
            );
        }
    }
}
