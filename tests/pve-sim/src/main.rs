//! The simulated PVE cluster's program.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use pve_sim::{control::Client, guest, layout::NodeLayout, run, task, ticket};
use serde_json::{Map, Value, json};

/// A simulated Proxmox VE 9 cluster: real mounts, files, locks, processes and images, for tests and demos. It needs root and /dev/fuse.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster until it is told to end; one line tells when it is ready.
    Run {
        /// The cluster's folder; DIR/<node> stands for a node's root.
        #[arg(long)]
        dir: PathBuf,
        /// The nodes' names.
        #[arg(long, value_delimiter = ',', default_value = "pve1")]
        nodes: Vec<String>,
        /// Make a template on each node: 9001, 9002 ..., named debian-13, with the tags k8s and talos.
        #[arg(long)]
        seed_demo: bool,
        /// Multiply PVE's lock time-outs by this.
        #[arg(long, default_value_t = 1.0)]
        lock_factor: f64,
        /// Milliseconds that a refused login waits for its answer.
        #[arg(long, default_value_t = 3000)]
        refusal_delay_ms: u64,
        /// End when standard input is closed.
        #[arg(long)]
        until_stdin_closes: bool,
    },
    /// Tell a running cluster what is to happen, e.g. `ctl --dir D migrate vmid=100 to=pve2`.
    Ctl {
        /// The cluster's folder.
        #[arg(long)]
        dir: PathBuf,
        /// What to do: status, leftovers, seed-template, migrate, quorum ...
        verb: String,
        /// `key=value`; a value that is JSON is taken as such, and `a.b=value` sets a field inside.
        arguments: Vec<String>,
    },
    /// Print a ticket for a node's local API, as PVE's own Perl does on a real host.
    Ticket {
        /// The cluster's folder.
        #[arg(long)]
        dir: PathBuf,
        /// The node.
        #[arg(long)]
        node: String,
        /// The user.
        #[arg(default_value = "root@pam")]
        user: String,
    },
}

fn main() -> ExitCode {
    if let Some(code) = task::enter().or_else(guest::enter) {
        return code;
    }
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).init();
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "pve-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> io::Result<()> {
    match command {
        Command::Run { dir, nodes, seed_demo, lock_factor, refusal_delay_ms, until_stdin_closes } => {
            let refusal_delay = Duration::from_millis(refusal_delay_ms);
            run::run(&run::Options { dir, nodes, seed_demo, lock_factor, refusal_delay, until_stdin_closes })
        }
        Command::Ctl { dir, verb, arguments } => {
            let answer = Client::new(&dir).send(&request(&verb, &arguments)?)?;
            let text = match answer {
                Value::Null => return Ok(()),
                Value::String(text) => text,
                other => serde_json::to_string_pretty(&other).map_err(io::Error::other)?,
            };
            writeln!(io::stdout(), "{}", text.trim_end())
        }
        Command::Ticket { dir, node, user } => {
            let text = ticket::assemble(&NodeLayout::new(&dir, &node), &user)?;
            write!(io::stdout(), "{text}")
        }
    }
}

fn request(verb: &str, arguments: &[String]) -> io::Result<Value> {
    let mut fields = Map::new();
    fields.insert("verb".into(), verb.into());
    for argument in arguments {
        let (key, value) = argument.split_once('=').ok_or_else(|| io::Error::other(format!("'{argument}' is not key=value")))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        let mut parts = key.split('.');
        let first = parts.next().unwrap_or_default();
        let mut at = fields.entry(first).or_insert(Value::Null);
        for part in parts {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[part];
        }
        *at = value;
    }
    Ok(Value::Object(fields))
}
