//! `/healthz`: whether the kubelet's main loop still turns.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::setup::{Reader, Standing};
use crate::{
    error::{Error, Trouble},
    health::{Check, Finding, Group, Mend, Pace, Source, State},
    host::kubelet::Answer,
};

const HEALTHZ: &str = "kubelet.healthz";
const CHECKS: [Check; 1] = [Check {
    id: HEALTHZ,
    group: Group::Kubelet,
    why: "A kubelet that hangs keeps its unit active and starts no pods; only its own health check tells.",
}];

/// The kubelet answers from memory: this is for a host that swaps.
const PATIENCE: Duration = Duration::from_secs(3);
/// So many bad answers in a row are no hiccup.
const WEDGED: u32 = 3;

/// Asks `/healthz`.
pub(super) struct HealthzSource {
    reader: Arc<Reader>,
    /// Bad answers in a row.
    bad: AtomicU32,
}

impl HealthzSource {
    pub(super) fn new(reader: Arc<Reader>) -> Self {
        Self { reader, bad: AtomicU32::new(0) }
    }
}

#[tonic::async_trait]
impl Source for HealthzSource {
    fn name(&self) -> &'static str {
        "kubelet-healthz"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.reader.settings.period)
    }

    async fn look(&self) -> Vec<Finding> {
        let setup = match self.reader.read().await {
            Standing::No(why) => return super::none(&CHECKS, &why),
            Standing::Worker(setup) => setup,
        };
        let Some(address) = setup.healthz() else {
            return vec![Finding::not_applicable(HEALTHZ, "healthzPort is 0: the kubelet serves no /healthz")];
        };
        let answer = self.reader.kubelet.healthz(address, PATIENCE).await;
        let bad = if well(&answer) { 0 } else { self.bad.load(Ordering::Relaxed).saturating_add(1) };
        self.bad.store(bad, Ordering::Relaxed);
        vec![judge(address, &answer, bad, setup.active(), &self.reader.settings.kubelet_unit)]
    }
}

fn well(answer: &Result<Answer, Error>) -> bool {
    answer.as_ref().is_ok_and(|a| a.status == 200)
}

/// What is made of an answer; `bad`: how many bad ones there were in a row, this one included.
fn judge(address: SocketAddr, answer: &Result<Answer, Error>, bad: u32, active: bool, unit: &str) -> Finding {
    let url = format!("http://{address}/healthz");
    let restart = format!("systemctl restart {unit}; before that, for the cause: journalctl -u {unit} -n 100");
    let (mut finding, restartable) = match answer {
        Ok(a) if a.status == 200 => (Finding::ok(HEALTHZ, format!("{url} answers ok")), false),
        Ok(a) => {
            let failed: Vec<&str> = a.body.lines().filter_map(|l| l.strip_prefix("[-]")).collect();
            let what = if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) };
            (Finding::degraded(HEALTHZ, format!("{url} answers {}{what}", a.status), restart), a.status >= 500)
        }
        Err(Error::Look { trouble: Trouble::Garbled, message }) => {
            let remedy = format!("see what listens there: ss -ltnp 'sport = :{}'; free the port, or set healthzPort", address.port());
            (Finding { remedy, ..Finding::unknown(HEALTHZ, message.clone()) }, false)
        }
        Err(e) => (Finding { remedy: restart, ..Finding::unknown(HEALTHZ, e.to_string()) }, true),
    };
    if bad >= WEDGED {
        finding.state = State::Failed;
        finding.seen.push_str("; several times in a row");
        // One that does not run is told, and mended, by its unit.
        if restartable && active {
            finding = finding.mended_by(Mend::RestartUnit(unit.to_owned()));
        } else if !active {
            finding.seen.push_str(&format!("; {unit} is not active"));
        }
    }
    finding.about(unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::testing::{CONFIG, Host, UNIT},
        *,
    };
    use crate::host::units_fake::FakeUnits;

    fn answer(status: u16, body: &str) -> Result<Answer, Error> {
        Ok(Answer { status, body: body.into() })
    }

    fn no(trouble: Trouble) -> Result<Answer, Error> {
        Err(Error::Look { trouble, message: format!("{trouble:?}") })
    }

    #[test]
    fn one_bad_answer_is_no_reason_to_restart_and_three_are() {
        let address = "127.0.0.1:10248".parse().unwrap();
        let loops = "[+]ping ok\n[-]syncloop failed: reason withheld\nhealthz check failed";
        for (answer, bad, active, expected, mends) in [
            (answer(200, "ok"), 0, true, State::Ok, false),
            (no(Trouble::Silent), 1, true, State::Unknown, false),
            (no(Trouble::Silent), 2, true, State::Unknown, false),
            (no(Trouble::Silent), 3, true, State::Failed, true),
            (no(Trouble::Refused), 1, false, State::Unknown, false),
            (no(Trouble::Refused), 3, false, State::Failed, false),
            (no(Trouble::Refused), 3, true, State::Failed, true),
            (no(Trouble::Garbled), 1, true, State::Unknown, false),
            (no(Trouble::Garbled), 9, true, State::Failed, false),
            (answer(500, loops), 1, true, State::Degraded, false),
            (answer(500, loops), 3, true, State::Failed, true),
            (answer(404, "not found"), 3, true, State::Failed, false),
        ] {
            let finding = judge(address, &answer, bad, active, UNIT);
            assert_eq!((finding.state, finding.mend.is_some()), (expected, mends), "{answer:?} {bad}");
        }
        let finding = judge(address, &answer(500, loops), 1, true, UNIT);
        assert_eq!(finding.seen, "http://127.0.0.1:10248/healthz answers 500: syncloop failed: reason withheld");
    }

    #[tokio::test]
    async fn a_good_answer_ends_the_count_and_the_address_is_the_kubelets() {
        let host = Host::new();
        host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}healthzPort: 11248\n"));
        let source = HealthzSource::new(Arc::new(host.reader()));
        let hang = || no(Trouble::Silent);
        host.kubelet.change(|w| w.healthz = [hang(), hang(), answer(200, "ok"), hang(), hang(), hang(), answer(200, "ok")].into());
        let mut states = Vec::new();
        for _ in 0..7 {
            states.push(source.look().await[0].state);
        }
        use State::{Failed, Ok as Well, Unknown};
        assert_eq!(states, [Unknown, Unknown, Well, Unknown, Unknown, Failed, Well]);
        assert_eq!(host.kubelet.change(|w| w.asked).unwrap().to_string(), "127.0.0.1:11248");
    }

    #[tokio::test]
    async fn without_a_port_there_is_nothing_to_ask_and_a_dead_unit_is_not_mended_twice() {
        let host = Host::new();
        host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}healthzPort: 0\n"));
        assert_eq!(host.finding(HEALTHZ).await.state, State::NotApplicable);
        host.kubelet.write(&host.settings.kubelet_config, CONFIG);
        host.units.set(UNIT, FakeUnits::dead());
        host.kubelet.change(|w| w.healthz = [no(Trouble::Refused)].into());
        let source = HealthzSource::new(Arc::new(host.reader()));
        for _ in 0..4 {
            assert_eq!(source.look().await[0].mend, None);
        }
    }
}
