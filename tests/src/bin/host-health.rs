//! Looks at the health of the machine it runs on, as the agent does, and prints a line of JSON for each check: for tests in guests. PVE itself
//! is in memory, since there is none in a guest.
//!
//!     host-health [CHECK...]
//!
//! With names, only the sources of these checks look.

use std::{io::Write, process::ExitCode, sync::Arc};

use pvelet_agent::{
    config,
    health::{self, Source},
    host::{
        machine::{MachineHost, MachinePaths},
        pve::fake::FakePve,
        units::SystemdUnits,
    },
};
use serde_json::json;

#[tokio::main]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let Ok((config, _)) = config::parse("[tls]\ntrust_domain = \"pvelet.example\"\n") else { return ExitCode::FAILURE };
    let machine = Arc::new(MachineHost::new(MachinePaths::of("pve1", std::path::Path::new("/"))));
    let sources = health::machine::sources(&config.health, Arc::new(FakePve::new("pve1")), machine, Arc::new(SystemdUnits::new()));
    let meant = |source: &Arc<dyn Source>| wanted.is_empty() || source.checks().iter().any(|c| wanted.iter().any(|w| w == c.id));
    let mut lines = String::new();
    for source in sources.iter().filter(|s| meant(s)) {
        let Ok(found) = tokio::time::timeout(source.pace().deadline, source.look()).await else {
            lines.push_str(&format!("{}\n", json!({"id": source.name(), "state": "late"})));
            continue;
        };
        for f in found {
            let state = format!("{:?}", f.state);
            let mend = f.mend.map(|m| m.to_string());
            lines.push_str(&format!(
                "{}\n",
                json!({"id": f.id, "state": state, "seen": f.seen, "remedy": f.remedy, "subjects": f.subjects, "mend": mend})
            ));
        }
    }
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
