//! The command line of the hosts' health.

use clap::{ArgGroup, Args, Subcommand, builder::PossibleValuesParser};

use super::{Global, Mutation};
use crate::cli::{CliError, parse, view::GROUPS};

#[derive(Debug, Args)]
#[command(after_help = "\
What is well is listed too; pveletctl doctor tells only what is not, and what to do about it. The ids of all checks stand in docs/health.md.

Examples:
  pveletctl health --host pve1 --group containerd
  pveletctl health -o wide                        with what each check is about, why it matters, and the remedy
  pveletctl health --watch                        what changes, as it changes")]
pub(in crate::cli) struct Health {
    /// Only this group; may be repeated
    #[arg(long = "group", value_name = "GROUP", value_parser = PossibleValuesParser::new(GROUPS))]
    pub(in crate::cli) groups: Vec<String>,
    /// Also checks that do not concern the host
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Print what is not well, then what changes, as it changes
    #[arg(long, short)]
    pub(in crate::cli) watch: bool,
    /// With --watch: end after so many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "watch")]
    pub(in crate::cli) count: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status:
  0  everything is well on all hosts
  1  something is degraded, or cannot be told
  2  something has failed, or a host cannot be reached

Examples:
  pveletctl doctor                                all hosts of the configuration
  pveletctl doctor pve1 pve2 --run                after running all their checks once more")]
pub(in crate::cli) struct Doctor {
    /// Only these hosts of the configuration
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// Run all checks now first, the probe that starts a pod sandbox included; role operator
    #[arg(long)]
    pub(in crate::cli) run: bool,
}

impl Doctor {
    /// Hosts that are named after the command count as if `--host` named them.
    pub(in crate::cli) fn take_hosts(&self, global: &mut Global) -> Result<(), CliError> {
        if !self.hosts.is_empty() && !global.agents.is_empty() {
            return Err(CliError::Usage("doctor HOST names hosts of the configuration: leave them out with --agent".to_owned()));
        }
        global.hosts.extend_from_slice(&self.hosts);
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Check {
    /// Run checks on all hosts, or those of --host, and show how they came out; role operator
    #[command(after_help = "\
Examples:
  pveletctl check run containerd                  a whole group
  pveletctl check run containerd.sandbox kubelet.healthz --host pve1")]
    Run(RunChecks),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RunChecks {
    /// Ids such as containerd.sandbox, or groups such as kubelet
    #[arg(required = true, value_name = "CHECK", value_parser = parse::check, num_args = 1..=200)]
    pub(in crate::cli) checks: Vec<String>,
    /// Also checks that do not concern the host
    #[arg(long)]
    pub(in crate::cli) all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is changed is verified by the check itself, and restored when that does not get better. The agent's configuration says what may be
repaired ([repair] policy: \"off\" unless it was changed); --dry-run works under every policy. Two repairs in a row that failed end all
repairs of a host until somebody has looked at it: pveletctl repair --clear.

Examples:
  pveletctl repair containerd.runtime-type --host pve1 --dry-run
  pveletctl repair containerd-config --host pve1  whatever is wrong in containerd's configuration
  pveletctl repair kubelet.unit --host pve1 --yes --timeout 2m
  pveletctl repair --clear --host pve1")]
#[command(group = ArgGroup::new("what").args(["check", "clear"]).required(true))]
pub(in crate::cli) struct Repair {
    /// Id of a check that is degraded or failed, or containerd-config
    #[arg(value_name = "CHECK", value_parser = parse::check)]
    pub(in crate::cli) check: Option<String>,
    /// Let the host be repaired again after two repairs that failed; role admin
    #[arg(long, conflicts_with_all = ["dry_run", "no_wait", "timeout"])]
    pub(in crate::cli) clear: bool,
    /// Show what would be changed and which units restarted, and touch nothing
    #[arg(long, conflicts_with_all = ["yes", "no_wait", "timeout", "request_id"])]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    #[command(flatten)]
    pub(in crate::cli) mutation: Mutation,
}
