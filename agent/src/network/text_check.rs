//! Whether ifupdown2 takes a text, asked as soon as the text is known: starting it takes longer than all else that is done before a text is
//! written. Who asks for a plan often wants it carried out next; so the text of a plan is checked without anybody waiting for it, and a change
//! that comes to the same text finds the verdict there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture, future::Shared};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{error::Error, host::net::Network};

/// How long a verdict holds. Whoever plans and carries out by hand takes a while.
const HOLDS: Duration = Duration::from_secs(300);

/// `None`: there is no verdict.
type Verdict = Shared<BoxFuture<'static, Option<Result<(), Error>>>>;

/// The text of the last plan.
struct Early {
    text: String,
    begun: Instant,
    /// Of what checks it.
    mark: u64,
    verdict: Verdict,
}

/// The checks of plans.
#[derive(Default)]
pub(super) struct EarlyChecks {
    last: Mutex<Option<Early>>,
}

/// What ifupdown2 reads of a text: not its comments, in which the names of tenants stand.
fn read(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

impl EarlyChecks {
    /// Begins to check the text of a plan, unless that was done, or another one is being checked. Must be called on a runtime.
    pub(super) fn begin(&self, net: &Arc<dyn Network>, text: &str) {
        let (known, mark) = (self.verdict(net, text), net.check_mark());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() || last.as_ref().is_some_and(|early| early.verdict.peek().is_none()) {
            return;
        }
        let (asked, net) = (text.to_owned(), Arc::clone(net));
        // A task of its own: nobody waits for it, and it has a deadline.
        let task = tokio::spawn(async move { net.check_text_aside(&asked).await });
        let verdict = async move { task.await.unwrap_or(None) }.boxed().shared();
        // So that it is seen when it has ended.
        tokio::spawn(verdict.clone());
        *last = Some(Early { text: read(text), begun: Instant::now(), mark, verdict });
    }

    /// The verdict on this text, where there is one that holds, or will be.
    fn verdict(&self, net: &Arc<dyn Network>, text: &str) -> Option<Verdict> {
        let mark = net.check_mark();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let early = last.as_ref().filter(|e| e.text == read(text) && e.mark == mark && e.begun.elapsed() < HOLDS)?;
        (early.verdict.peek() != Some(&None)).then(|| early.verdict.clone())
    }

    /// Checks the text of a change; `None`: there will be no file. Must be called on a runtime.
    pub(super) fn check(&self, net: &Arc<dyn Network>, text: Option<String>) -> TextCheck {
        let Some(text) = text else { return TextCheck(None) };
        let (early, net) = (self.verdict(net, &text), Arc::clone(net));
        TextCheck(Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(early) = early
                && let Some(Ok(())) = early.await
            {
                return Ok(());
            }
            // Where it does not take the text, it says so itself.
            net.check_text(&text).await
        }))))
    }
}

/// A check under way. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct TextCheck(Option<AbortOnDropHandle<Result<(), Error>>>);

impl TextCheck {
    /// Waits for the verdict. Errors: `NetworkFailed`, with what ifupdown2 says.
    pub(super) async fn passed(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(check) => check.await.unwrap_or_else(|e| Err(Error::Internal(format!("the check of the declaration: {e}")))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        host::net::fake::{FakeHost, FakeNetwork, Fault},
        network::{definition::Definition, own_file::OwnFile},
    };

    const TEXT: &str = "# pvelet-network: {\"tenant\":\"a\"}\nauto v\niface v inet manual\n";

    struct Rig {
        checks: EarlyChecks,
        fake: Arc<FakeNetwork>,
        net: Arc<dyn Network>,
    }

    fn rig() -> Rig {
        let fake = FakeHost::new().process();
        Rig { checks: EarlyChecks::default(), net: fake.clone(), fake }
    }

    /// A text that passes.
    fn made() -> String {
        let definition = Definition { name: "n".into(), tenant: "a".into(), interfaces: Vec::new() };
        OwnFile { networks: vec![definition] }.render().unwrap()
    }

    impl Rig {
        async fn passes(&self, text: &str) -> bool {
            self.checks.check(&self.net, Some(text.to_owned())).passed().await.is_ok()
        }

        fn calls(&self) -> Vec<&'static str> {
            self.fake.calls()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_text_of_a_plan_is_not_checked_again_for_whomever_it_is() {
        let rig = rig();
        let text = made();
        rig.checks.begin(&rig.net, &text);
        rig.checks.begin(&rig.net, &text);
        assert!(rig.passes(&text).await);
        assert_eq!(rig.calls(), ["check_text_aside"]);
        // ifupdown2 does not read comments.
        assert_eq!(read(&text.replace("# ", "# for somebody else ")), read(&text));
        assert_eq!(read(TEXT), "auto v\niface v inet manual\n");
    }

    #[tokio::test(start_paused = true)]
    async fn another_text_another_ifupdown2_and_an_old_verdict_are_checked_again() {
        let rig = rig();
        let text = made();
        rig.checks.begin(&rig.net, &text);
        assert!(!rig.passes(&format!("{text}auto other\n")).await);
        rig.fake.host().upgrade_ifupdown2();
        assert!(rig.passes(&text).await);
        rig.checks.begin(&rig.net, &text);
        assert!(rig.passes(&text).await);
        tokio::time::advance(HOLDS).await;
        assert!(rig.passes(&text).await);
        assert_eq!(rig.calls().iter().filter(|c| **c == "check_text_aside").count(), 2);
        assert_eq!(rig.calls().iter().filter(|c| **c == "check_text").count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_verdict_against_a_text_is_asked_for_again() {
        let rig = rig();
        let text = made();
        rig.fake.at("check_text_aside", 1, Fault::Fail);
        rig.checks.begin(&rig.net, &text);
        assert!(rig.passes(&text).await);
        assert_eq!(rig.calls(), ["check_text_aside", "check_text"]);
    }
}
