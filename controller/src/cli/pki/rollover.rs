//! `pveletctl pki rollover`.

use std::{io::Write as _, time::SystemTime};

use clap::Subcommand;
use serde::Serialize;

use super::{
    super::{CliError, Exit, Io, args::Format, output},
    At, seconds,
};
use crate::pki::{Ca, CertInfo, Lifetime, Phase, PkiDir};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
A new CA takes the old one's place without a call that fails:
  pveletctl pki rollover start                    ca.crt and ca.crl hold both CAs from now on; the old one signs
  pveletctl pki push --all                        to all hosts; and ca.crt and ca.crl to every client (controller, people)
  pveletctl pki rollover switch                   the new one signs
  pveletctl pki renew --all                       and a new certificate for every client (pki issue)
  pveletctl pki revoke --replaced                 what the old CA issued and a newer certificate has replaced
  pveletctl pki rollover finish                   refused while a certificate of the old CA lives
  pveletctl pki push --all                        and ca.crt and ca.crl to every client")]
pub(in crate::cli) enum Rollover {
    /// Make a new CA beside the old one
    Start {
        #[command(flatten)]
        at: At,
        /// How long it is valid
        #[arg(long, default_value_t = Lifetime::CA_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Let the new CA sign, once hosts and clients have its certificate
    Switch {
        #[command(flatten)]
        at: At,
    },
    /// Take the old CA out, once none of its certificates lives any more
    Finish {
        #[command(flatten)]
        at: At,
    },
    /// Tell how far it is, and what is to be done next
    Status {
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Serialize)]
struct StatusView {
    /// "none", "started" or "switched".
    phase: &'static str,
    cas: Vec<CaView>,
    next: String,
}

#[derive(Debug, Serialize)]
struct CaView {
    /// "signs", "next" or "old".
    role: &'static str,
    not_after: String,
    sha256: String,
    crl_number: u64,
    /// Certificates that have neither ended nor been revoked.
    alive: Vec<String>,
}

pub(super) fn run(command: &Rollover, format: Format, io: &Io) -> Result<Exit, CliError> {
    let (Rollover::Start { at, .. } | Rollover::Switch { at } | Rollover::Finish { at } | Rollover::Status { at }) = command;
    let pki = PkiDir::open(&at.dir);
    let (done, what) = match command {
        Rollover::Start { days, .. } => (pki.start_rollover(Lifetime::days(*days))?, "the new CA is made"),
        Rollover::Switch { .. } => (pki.switch_rollover()?, "the new CA signs from now on"),
        Rollover::Finish { .. } => (pki.finish_rollover(SystemTime::now())?, "the old CA is taken out, and its key is removed"),
        Rollover::Status { .. } => (true, ""),
    };
    if !what.is_empty() {
        io.note(if done { what } else { "nothing was changed: that was done before" });
    }
    output::print(io, format, &status(&pki)?, |v| {
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = writeln!(text, "rollover: {}", v.phase);
        for ca in &v.cas {
            let _ = writeln!(
                text,
                "  {}: until {}, CRL number {}, {} certificates live, SHA-256 {}",
                ca.role,
                ca.not_after,
                ca.crl_number,
                ca.alive.len(),
                ca.sha256
            );
        }
        let _ = writeln!(text, "next: {}", v.next);
        String::from_utf8_lossy(&text).into_owned()
    })?;
    Ok(Exit::Ok)
}

fn status(pki: &PkiDir) -> Result<StatusView, CliError> {
    let state = pki.rollover()?;
    let lists = crate::pki::Crl::all_from_pem(&pki.lists()?)?;
    let view = |ca: &Ca, role| -> Result<CaView, CliError> {
        let info = CertInfo::from_pem(ca.cert_pem())?;
        let alive = pki.alive_of(ca, SystemTime::now())?;
        let list = lists.iter().find(|list| list.issuer_key_id() == info.key_id.as_deref());
        Ok(CaView {
            role,
            not_after: seconds(info.not_after),
            sha256: info.sha256,
            crl_number: list.map_or(0, crate::pki::Crl::number),
            alive: alive.iter().map(|c| format!("{} {}", c.uris.join(" "), c.serial)).collect(),
        })
    };
    let mut cas = vec![view(&state.signing, "signs")?];
    let (phase, role) = match state.phase {
        Phase::None => ("none", ""),
        Phase::Started => ("started", "next"),
        Phase::Switched => ("switched", "old"),
    };
    if let Some(other) = &state.other {
        cas.push(view(other, role)?);
    }
    let next = match state.phase {
        Phase::None => "nothing; pveletctl pki rollover start, well before the CA ends",
        Phase::Started => "pveletctl pki push --all, bring ca.crt and ca.crl to every client, then pveletctl pki rollover switch",
        Phase::Switched if cas.iter().any(|ca| ca.role == "old" && !ca.alive.is_empty()) => {
            "pveletctl pki renew --all, new certificates for every client, pveletctl pki revoke --replaced, then pveletctl pki rollover finish"
        }
        Phase::Switched => "pveletctl pki rollover finish, then pveletctl pki push --all, and bring ca.crt and ca.crl to every client",
    };
    Ok(StatusView { phase, cas, next: next.to_owned() })
}
