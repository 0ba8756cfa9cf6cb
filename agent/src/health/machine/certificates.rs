//! PVE's certificates of this node.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    source::{Look, check},
    words::{Worst, age, day, list, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::machine::{CertificateFile, KeyMatch, Machine},
};

const CERTIFICATES: Check = check(
    "host.certificates",
    "An expired certificate keeps the web interface, the API's clients, migrations over it, and other nodes' proxies away.",
);

/// PVE renews what it made itself once a day from two weeks before its end on: what is nearer to its end than this was not renewed.
const OWN_WARNING: Duration = Duration::from_secs(12 * 86400);

pub(super) fn source(pace: Pace, machine: &Arc<dyn Machine>, warning: Duration) -> Arc<dyn Source> {
    let machine = Arc::clone(machine);
    let look = move || {
        let machine = Arc::clone(&machine);
        async move { vec![decide(&machine.certificates().await, warning, SystemTime::now())] }
    };
    Look::new("certificates", &[CERTIFICATES], pace, look).done()
}

fn decide(files: &Result<Vec<CertificateFile>, Error>, warning: Duration, now: SystemTime) -> Finding {
    let id = CERTIFICATES.id;
    let files = match files {
        Ok(files) => files,
        Err(error) => return unknown(id, error),
    };
    if files.iter().all(|f| f.pem == Ok(None)) {
        return Finding::not_applicable(id, "PVE has made no certificates here");
    }
    let mut worst = Worst::new();
    let mut well = Vec::new();
    for file in files {
        let path = file.path.display().to_string();
        let mut bad = |state, what: String| worst.add(state, &path, format!("{path} {what}"));
        let pem = match &file.pem {
            Ok(Some(pem)) => pem,
            Ok(None) if file.own => {
                bad(State::Degraded, "is missing".into());
                continue;
            }
            Ok(None) => continue,
            Err(error) => {
                bad(State::Unknown, format!("cannot be read: {error}"));
                continue;
            }
        };
        let ((begin, end), chain) = match validities(pem) {
            Ok(all) => all,
            Err(why) => {
                bad(State::Failed, why);
                continue;
            }
        };
        // Certificates that last for days only are renewed late in their life.
        let life = end.duration_since(begin).unwrap_or_default();
        let warning = if file.own { warning.min(OWN_WARNING) } else { warning }.min(life / 4);
        if now >= end {
            bad(State::Failed, format!("ended on {}", day(end)));
        } else if now < begin {
            bad(State::Failed, format!("is valid only from {} on: is the clock right?", day(begin)));
        } else if age(now, end) < warning {
            bad(State::Degraded, format!("ends on {}", day(end)));
        } else {
            well.push(format!("{path} ends on {}", day(end)));
        }
        // Clients that know the root, or another way to it, do without these.
        let first = chain.iter().map(|(_, end)| *end).min().filter(|end| age(now, *end) < warning);
        let last = chain.iter().map(|(begin, _)| *begin).max().filter(|begin| now < *begin);
        if let Some(end) = first {
            let word = if now >= end { "ended" } else { "ends" };
            bad(State::Degraded, format!("holds a CA's certificate that {word} on {}", day(end)));
        } else if let Some(begin) = last {
            bad(State::Degraded, format!("holds a CA's certificate that is valid only from {} on", day(begin)));
        }
        match file.key {
            KeyMatch::Differs => bad(State::Failed, "does not belong to the private key beside it".into()),
            KeyMatch::Missing => bad(State::Failed, "has no private key beside it".into()),
            KeyMatch::Matches | KeyMatch::Untold => {}
        }
    }
    let remedy = "`pvecm updatecerts --force` makes PVE's own anew, `pvenode acme cert renew` those of ACME, `pvenode cert set` takes others; then \
                  `systemctl reload pveproxy`";
    worst.finding(id, || list(&well), remedy)
}

/// From when to when a certificate is valid.
type Validity = (SystemTime, SystemTime);

/// The validity of a file's first certificate, which is its holder's, and those of the others, which are of CAs.
fn validities(pem: &str) -> Result<(Validity, Vec<Validity>), String> {
    let mut all = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|e| format!("is no PEM file: {e}"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| format!("holds no certificate: {e}"))?;
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        all.push((time(certificate.validity().not_before.timestamp()), time(certificate.validity().not_after.timestamp())));
    }
    let mut all = all.into_iter();
    let leaf = all.next().ok_or_else(|| "holds no certificate".to_owned())?;
    Ok((leaf, all.collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::error::Trouble;

    const DAY: u64 = 86400;

    fn valid(from: (i32, u8, u8), to: (i32, u8, u8)) -> String {
        let mut params = CertificateParams::new(["pve1".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from.0, from.1, from.2), date_time_ymd(to.0, to.1, to.2));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    /// Valid from June of 2029 through January of 2030.
    fn pem() -> String {
        valid((2029, 6, 1), (2030, 1, 31))
    }

    /// A day of January 2030 (0 is the first).
    fn january(day: i64) -> SystemTime {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        if day < 0 { begin - Duration::from_secs(day.unsigned_abs() * DAY) } else { begin + Duration::from_secs(day.unsigned_abs() * DAY) }
    }

    fn file(name: &str, own: bool, pem: Option<String>, key: KeyMatch) -> CertificateFile {
        CertificateFile { path: format!("/etc/pve/{name}").into(), own, pem: Ok(pem), key }
    }

    fn state(files: Vec<CertificateFile>, at: SystemTime) -> Finding {
        decide(&Ok(files), Duration::from_secs(14 * DAY), at)
    }

    #[test]
    fn the_end_is_told_in_time_and_pve_has_time_to_renew_its_own() {
        let (own, custom) = (
            || vec![file("pve-ssl.pem", true, Some(pem()), KeyMatch::Matches)],
            || vec![file("pveproxy-ssl.pem", false, Some(pem()), KeyMatch::Matches)],
        );
        let table = [
            (-300, State::Failed, State::Failed),
            (1, State::Ok, State::Ok),
            (17, State::Ok, State::Degraded),
            (19, State::Degraded, State::Degraded),
            (30, State::Failed, State::Failed),
        ];
        for (at, of_own, of_custom) in table {
            assert_eq!(state(own(), january(at)).state, of_own, "own, day {at}");
            assert_eq!(state(custom(), january(at)).state, of_custom, "custom, day {at}");
        }
        let seen = state(own(), january(19));
        assert!(seen.seen.contains("/etc/pve/pve-ssl.pem ends on 2030-01-31") && seen.subjects == ["/etc/pve/pve-ssl.pem"], "{seen:?}");
    }

    #[test]
    fn certificates_of_a_few_days_are_told_late_in_their_life() {
        let short = || vec![file("pveproxy-ssl.pem", false, Some(valid((2030, 1, 1), (2030, 1, 7))), KeyMatch::Matches)];
        for (at, expected) in [(-1, State::Failed), (0, State::Ok), (4, State::Ok), (5, State::Degraded), (6, State::Failed)] {
            assert_eq!(state(short(), january(at)).state, expected, "day {at}");
        }
    }

    #[test]
    fn only_the_holders_own_certificate_fails_and_one_of_a_ca_is_told() {
        let chain = |ca: String| vec![file("pveproxy-ssl.pem", false, Some(format!("{}{ca}", pem())), KeyMatch::Matches)];
        for (ca, expected, seen) in [
            (valid((2029, 1, 1), (2030, 1, 3)), State::Degraded, "holds a CA's certificate that ended on 2030-01-03"),
            (valid((2029, 1, 1), (2030, 1, 10)), State::Degraded, "holds a CA's certificate that ends on 2030-01-10"),
            (valid((2030, 1, 20), (2040, 1, 1)), State::Degraded, "valid only from 2030-01-20 on"),
            (valid((2029, 1, 1), (2040, 1, 1)), State::Ok, "ends on 2030-01-31"),
        ] {
            let found = state(chain(ca), january(5));
            assert!(found.state == expected && found.seen.contains(seen), "{found:?}");
        }
        assert_eq!(state(chain(valid((2029, 1, 1), (2040, 1, 1))), january(30)).state, State::Failed);
    }

    #[test]
    fn what_is_missing_broken_or_foreign_is_told() {
        let good = || file("pve-root-ca.pem", true, Some(pem()), KeyMatch::Untold);
        let with = |other: CertificateFile| state(vec![good(), other], january(1));
        assert_eq!(with(file("pveproxy-ssl.pem", false, None, KeyMatch::Untold)).state, State::Ok);
        assert_eq!(with(file("pve-ssl.pem", true, None, KeyMatch::Untold)).state, State::Degraded);
        assert_eq!(with(file("pve-ssl.pem", true, Some(pem()), KeyMatch::Differs)).state, State::Failed);
        assert_eq!(with(file("pve-ssl.pem", true, Some(pem()), KeyMatch::Missing)).state, State::Failed);
        assert_eq!(with(file("pve-ssl.pem", true, Some("hello".into()), KeyMatch::Untold)).state, State::Failed);
        assert_eq!(with(file("pve-ssl.pem", true, Some(String::new()), KeyMatch::Untold)).state, State::Failed);
        let denied = Error::Look { trouble: Trouble::Denied, message: "permission denied".into() };
        let unreadable = CertificateFile { pem: Err(denied.clone()), ..file("pve-ssl.pem", true, None, KeyMatch::Untold) };
        assert_eq!(with(unreadable).state, State::Unknown);
        assert_eq!(decide(&Err(denied), Duration::ZERO, january(1)).state, State::Unknown);
        assert_eq!(state(vec![file("pve-ssl.pem", true, None, KeyMatch::Untold)], january(1)).state, State::NotApplicable);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(-----BEGIN CERTIFICATE-----\n|-----END CERTIFICATE-----\n|[A-Za-z0-9+/=\n]{0,80}|\\PC){0,8}") {
            let _ = validities(&text);
        }
    }
}
