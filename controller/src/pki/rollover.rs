//! A new CA beside the old one, and the old one's end: no moment at which anybody is not trusted.
//!
//! 1. `start`: the new CA is made (`next/`); `ca.crt` and `ca.crl` hold both from now on, and the old one goes on signing. Bring both files to
//!    hosts and clients.
//! 2. `switch`: the new one signs, the old one is kept for its revocation list (`previous/`). Renew every certificate.
//! 3. `finish`: the old one is taken out, and its key is removed. Bring both files to hosts and clients again.
//!
//! Each step has one moment at which it happens: `next/` appears, `ca.key` is replaced (it alone tells which of the certificates in `ca.crt`
//! signs), `previous/` goes by. `ca.crt` and `ca.crl` are written after it, and by whoever comes next where it was killed before they were.

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{CA_CERT, CA_KEY, CRL, Ca, CertInfo, Crl, Lifetime, PkiDir, PkiError, files};
use crate::crash::crash_point;

const NEXT: &str = "next";
const PREVIOUS: &str = "previous";
const RETIRED: &str = "retired";
/// What `previous/` is called once the old CA is none of this folder any more; its key goes with it.
const FINISHED: &str = "finished";

/// How far the rollover of a CA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is one CA.
    None,
    /// There is a new one, which signs nothing yet.
    Started,
    /// The new one signs; the old one is still trusted.
    Switched,
}

/// The CAs of a folder.
pub struct Rollover {
    /// How far it is.
    pub phase: Phase,
    /// The CA that signs.
    pub signing: Ca,
    /// The one beside it: the next or the previous one.
    pub other: Option<Ca>,
}

impl Rollover {
    /// All of them, the one that signs first.
    pub fn cas(&self) -> impl Iterator<Item = &Ca> {
        std::iter::once(&self.signing).chain(&self.other)
    }
}

fn not_now(why: &str) -> PkiError {
    PkiError::Rollover { why: why.to_owned() }
}

impl PkiDir {
    /// How far the rollover is, and whose CAs there are.
    pub fn rollover(&self) -> Result<Rollover, PkiError> {
        let signing = self.ca()?;
        for (folder, phase) in [(PREVIOUS, Phase::Switched), (NEXT, Phase::Started)] {
            // What a killed step left of the CA that signs is none beside it.
            if let Some(other) = self.beside(folder)?.filter(|other| other.cert_pem() != signing.cert_pem()) {
                return Ok(Rollover { phase, signing, other: Some(other) });
            }
        }
        Ok(Rollover { phase: Phase::None, signing, other: None })
    }

    fn beside(&self, folder: &str) -> Result<Option<Ca>, PkiError> {
        let dir = self.path(folder);
        match files::read(&dir.join(CA_CERT)) {
            Err(PkiError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(cert) => self.ca_of(&cert, &files::read(&dir.join(CA_KEY))?).map(Some),
        }
    }

    /// Makes the new CA and puts it beside the old one. `false`: that was done before.
    pub fn start_rollover(&self, lifetime: Lifetime) -> Result<bool, PkiError> {
        let _lock = self.lock()?;
        let now = self.rollover()?;
        match now.phase {
            Phase::Switched => Err(not_now("one is under way: renew what the old CA issued, then pveletctl pki rollover finish")),
            Phase::Started => self.write_bundles(&now).map(|()| false),
            Phase::None => {
                self.settle(&now)?;
                let new = Ca::create(now.signing.trust_domain(), lifetime)?;
                self.keep_ca(&new, NEXT)?;
                self.write_bundles(&self.rollover()?)?;
                Ok(true)
            }
        }
    }

    /// Lets the new CA sign. `false`: that was done before.
    pub fn switch_rollover(&self) -> Result<bool, PkiError> {
        let _lock = self.lock()?;
        let now = self.rollover()?;
        match (now.phase, now.other) {
            (Phase::Started, Some(next)) => {
                // A killed start may have left out the new one, or its list.
                self.write_bundles(&self.rollover()?)?;
                self.keep_ca(&now.signing, PREVIOUS)?;
                // From here on the new one signs.
                files::write_private(&self.path(CA_KEY), next.key_pem().as_bytes(), true)?;
                self.write_bundles(&self.rollover()?)?;
                self.remove(NEXT)?;
                Ok(true)
            }
            (Phase::Switched, other) => {
                self.write_bundles(&Rollover { phase: now.phase, signing: now.signing, other })?;
                self.remove(NEXT).map(|()| false)
            }
            _ => Err(not_now("there is no new CA; make one with pveletctl pki rollover start, and bring ca.crt to hosts and clients")),
        }
    }

    /// Takes the old CA out, and removes its key. Returns `false` when there was none.
    ///
    /// Refused while one of its certificates lives that is not revoked: its holder would be cut off.
    pub fn finish_rollover(&self, now: SystemTime) -> Result<bool, PkiError> {
        let _lock = self.lock()?;
        let state = self.rollover()?;
        match (state.phase, &state.other) {
            (Phase::Switched, Some(old)) => {
                self.list_of(old)?;
                let alive = self.alive_of(old, now)?;
                if !alive.is_empty() {
                    let some: Vec<String> = alive.iter().take(5).map(|c| format!("{} ({})", c.uris.join(" "), c.serial)).collect();
                    let why = format!(
                        "{} certificates of the old CA still live: {}{}; renew them (pveletctl pki renew --all, pki issue), and revoke those that are replaced (pveletctl pki revoke --replaced) or lost (pveletctl pki revoke)",
                        alive.len(),
                        some.join(", "),
                        if alive.len() > some.len() { ", ..." } else { "" }
                    );
                    return Err(not_now(&why));
                }
                self.retire(old)?;
                self.remove(FINISHED)?;
                crash_point!(sync "pki.finish.retired");
                // From here on the old one is none of ours.
                files::rename(&self.path(PREVIOUS), &self.path(FINISHED))?;
                crash_point!(sync "pki.finish.decided");
                self.settle(&self.rollover()?)
            }
            (Phase::Started, _) => {
                Err(not_now("the new CA signs nothing yet; pveletctl pki rollover switch, then renew every certificate"))
            }
            _ => self.settle(&state),
        }
    }

    /// Writes what a killed step left unwritten.
    pub fn put_right(&self) -> Result<(), PkiError> {
        let state = self.rollover()?;
        // Who only reads needs no right to write, unless something is to be written.
        if self.unwritten(&state)?.is_empty() && !self.path(FINISHED).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.settle(&self.rollover()?).map(drop)
    }

    /// Brings the files to `state`, and ends a finish that was killed. `false`: none was.
    fn settle(&self, state: &Rollover) -> Result<bool, PkiError> {
        self.write_bundles(state)?;
        let killed = self.path(FINISHED).exists();
        self.remove(FINISHED)?;
        Ok(killed)
    }

    /// Certificates of a CA of this folder that have neither ended nor been revoked.
    pub fn alive_of(&self, ca: &Ca, now: SystemTime) -> Result<Vec<CertInfo>, PkiError> {
        let (id, list) = (CertInfo::from_pem(ca.cert_pem())?.key_id, self.listed(ca)?);
        let mut certs = self.issued()?;
        certs.retain(|c| c.issuer_key_id == id && c.not_after_time() >= now && !list.iter().any(|list| list.revokes(c)));
        Ok(certs)
    }

    /// Takes a renewed certificate of the CA that signs: the former one may be taken out of hosts, and what was revoked stays so.
    pub(super) fn renew_ca(&self, ca: &Ca) -> Result<(), PkiError> {
        let before = self.rollover()?;
        self.write_bundles(&before)?;
        if CertInfo::from_pem(before.signing.cert_pem())?.sha256 == CertInfo::from_pem(ca.cert_pem())?.sha256 {
            return Ok(());
        }
        self.retire(&before.signing)?;
        let mut list = self.list_of(&before.signing)?;
        list.renew(ca)?;
        let others = before.other.iter().map(|other| self.list_of(other)).collect::<Result<Vec<_>, _>>()?;
        self.write_lists(&before, &[vec![list], others].concat())?;
        crash_point!(sync "pki.renewed.list");
        let others: String = before.other.iter().map(Ca::cert_pem).collect();
        let bundle = ca.cert_pem().to_owned() + &others + &self.foreign(&before)?.0;
        files::write_public(&self.path(CA_CERT), bundle.as_bytes(), true)
    }

    /// Keeps a certificate of a CA that is none of this folder any more: by it hosts are known that still have it. Its name is one of the
    /// certificate, since several may have the same key.
    fn retire(&self, ca: &Ca) -> Result<(), PkiError> {
        let retired = self.path(RETIRED);
        files::make_dir(&retired)?;
        let name = CertInfo::from_pem(ca.cert_pem())?.sha256;
        files::write_public(&retired.join(format!("{name}.crt")), ca.cert_pem().as_bytes(), true)
    }

    /// Certificates of the CAs that were taken out, and those of present ones that were renewed, PEM each.
    pub fn retired(&self) -> Result<Vec<String>, PkiError> {
        let entries = match fs::read_dir(self.path(RETIRED)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(PkiError::io(self.path(RETIRED))(e)),
        };
        let files = entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "crt"));
        files.map(|path| files::read(&path)).collect()
    }

    /// What a rollover left, where a CA is made anew.
    pub(super) fn forget_rollover(&self) -> Result<(), PkiError> {
        [NEXT, PREVIOUS, FINISHED].iter().try_for_each(|folder| self.remove(folder))
    }

    /// Writes a CA into a folder of its own, as a whole or not at all.
    fn keep_ca(&self, ca: &Ca, folder: &str) -> Result<(), PkiError> {
        let (dir, new) = (self.path(folder), self.path(&format!("{folder}.new")));
        for left in [&new, &dir] {
            remove_dir(left)?;
        }
        files::make_dir(&new)?;
        files::write_private(&new.join(CA_KEY), ca.key_pem().as_bytes(), true)?;
        files::write_public(&new.join(CA_CERT), ca.cert_pem().as_bytes(), true)?;
        files::rename(&new, &dir)
    }

    fn remove(&self, folder: &str) -> Result<(), PkiError> {
        remove_dir(&self.path(folder))
    }

    /// `ca.crt` and `ca.crl` as the CAs are now: the one that signs first, what is not of this folder last.
    pub(super) fn write_bundles(&self, state: &Rollover) -> Result<(), PkiError> {
        for (path, text) in self.unwritten(state)? {
            files::write_public(&path, text.as_bytes(), true)?;
            crash_point!(sync "pki.bundle.written");
        }
        Ok(())
    }

    /// The files that differ from `state`, with what they should hold, in the order in which they are written: an agent refuses a list whose CA
    /// it does not know.
    fn unwritten(&self, state: &Rollover) -> Result<Vec<(PathBuf, String)>, PkiError> {
        let mut lists = self.list_of(&state.signing)?.pem().to_owned();
        if let Some(other) = &state.other {
            // One that signs nothing yet has its first list; any other had one, and what is revoked in it must not be forgotten.
            let found = self.listed(other)?;
            let list = if state.phase == Phase::Started && found.is_none() { Crl::create(other)? } else { self.list_of(other)? };
            lists += list.pem();
        }
        let mut bundle: String = state.cas().map(Ca::cert_pem).collect();
        let (cas, foreign) = self.foreign(state)?;
        bundle += &cas;
        lists += &foreign;
        let mut files = vec![(self.ca_cert_path(), bundle), (self.path(CRL), lists)];
        if state.other.is_none() {
            files.reverse();
        }
        files.retain(|(path, text)| !files::read(path).is_ok_and(|there| there == *text));
        Ok(files)
    }

    /// CAs that somebody else has added to `ca.crt`, and lists that no CA of this folder signed. A CA that was taken out is none of them.
    pub(super) fn foreign(&self, state: &Rollover) -> Result<(String, String), PkiError> {
        let mut retired = self.retired()?;
        // Of a finish that was killed.
        retired.extend(files::read(&self.path(FINISHED).join(CA_CERT)).ok());
        let ours = state.cas().map(Ca::cert_pem).chain(retired.iter().map(String::as_str));
        let ours = ours.map(CertInfo::from_pem).collect::<Result<Vec<_>, _>>()?;
        let (mut cas, mut lists) = (String::new(), String::new());
        for pem in files::blocks(&self.bundle()?, "CERTIFICATE") {
            let sha256 = CertInfo::from_pem(pem)?.sha256;
            if !ours.iter().any(|ca| ca.sha256 == sha256) {
                add(&mut cas, pem);
            }
        }
        for list in Crl::all_from_pem(&self.lists()?)? {
            if !ours.iter().any(|ca| ca.key_id.as_deref() == list.issuer_key_id()) {
                add(&mut lists, list.pem());
            }
        }
        Ok((cas, lists))
    }

    /// Writes the lists of the CAs of this folder, before those of others.
    pub(super) fn write_lists(&self, state: &Rollover, lists: &[Crl]) -> Result<(), PkiError> {
        let mut text: String = lists.iter().map(Crl::pem).collect();
        text += &self.foreign(state)?.1;
        files::write_public(&self.path(CRL), text.as_bytes(), true)
    }

    /// The list of one CA.
    pub(super) fn list_of(&self, ca: &Ca) -> Result<Crl, PkiError> {
        let found = self.listed(ca)?;
        let sha256 = CertInfo::from_pem(ca.cert_pem())?.sha256;
        found.ok_or_else(|| PkiError::NoList { path: self.crl_path(), ca: sha256 })
    }

    pub(super) fn listed(&self, ca: &Ca) -> Result<Option<Crl>, PkiError> {
        let id = CertInfo::from_pem(ca.cert_pem())?.key_id;
        let lists = Crl::all_from_pem(&files::read(&self.crl_path())?)?;
        Ok(lists.into_iter().filter(|list| list.issuer_key_id() == id.as_deref()).max_by_key(Crl::number))
    }
}

/// Adds a block of PEM, which the last one of a file may have left without its line break.
fn add(text: &mut String, pem: &str) {
    *text += pem.trim_end();
    text.push('\n');
}

fn remove_dir(dir: &PathBuf) -> Result<(), PkiError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(PkiError::io(dir)(e)),
        _ => Ok(()),
    }
}

/// Seconds since 1970.
pub(crate) fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
