//! Journal lines that say all they know.
//!
//! `journalctl` shows the field MESSAGE alone. A layer that writes the other fields beside it leaves people with "audit" and "TLS files are bad",
//! without whose or which.

use std::fmt::{Debug, Write as _};

use tracing::{
    Event, Subscriber,
    field::{Field, Value, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::layer::{Context, Layer};

/// More than the macros of `tracing` take.
const FIELDS: usize = 32;
const MESSAGE: &str = "message";

/// Gives a layer events whose message holds the target and the fields too, as in the text format; the fields themselves stay.
#[derive(Debug)]
pub(super) struct Readable<L>(pub(super) L);

impl<S: Subscriber, L: Layer<S>> Layer<S> for Readable<L> {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let fields = event.metadata().fields();
        let Some(message) = fields.field(MESSAGE) else { return self.0.on_event(event, context) };
        let line = format!("{}: {}{}", event.metadata().target(), seen.message, seen.told);
        let mut values: [(&Field, Option<&dyn Value>); FIELDS] = [(&message, None); FIELDS];
        values[0] = (&message, Some(&line));
        for (slot, (field, value)) in values.iter_mut().skip(1).zip(&seen.others) {
            *slot = (field, Some(value));
        }
        self.0.on_event(&Event::new(event.metadata(), &fields.value_set(&values)), context);
    }
}

/// The fields of one event.
#[derive(Default)]
struct Seen {
    message: String,
    others: Vec<(Field, String)>,
    told: String,
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            value.clone_into(&mut self.message);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(self.told, " {}={value:?}", field.name());
            self.others.push((field.clone(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            self.message = format!("{value:?}");
        } else {
            let value = format!("{value:?}");
            let _ = write!(self.told, " {}={value}", field.name());
            self.others.push((field.clone(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps what a journal would be given.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            struct Into<'a>(&'a mut BTreeMap<String, String>);
            impl Visit for Into<'_> {
                fn record_str(&mut self, field: &Field, value: &str) {
                    assert!(self.0.insert(field.name().into(), value.into()).is_none(), "{field} twice");
                }
                fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                    self.record_str(field, &format!("{value:?}"));
                }
            }
            let mut entry = BTreeMap::new();
            event.record(&mut Into(&mut entry));
            self.0.lock().unwrap().push(entry);
        }
    }

    #[test]
    fn a_line_of_the_journal_holds_the_fields_that_stand_beside_it() {
        let kept = Kept::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Readable(kept.clone())), || {
            let error = std::io::Error::other("agent.key is missing");
            tracing::warn!(target: "pvelet::audit", %error, caller = "ann b", count = 3, here = true, none = None::<&str>, "bad {}", "files");
            tracing::info!("nothing beside it");
            tracing::info!(count = 1);
        });
        let kept = kept.0.lock().unwrap();
        let audit = r#"pvelet::audit: bad files error=agent.key is missing caller="ann b" count=3 here=true"#;
        let told: BTreeMap<_, _> =
            [("message", audit), ("error", "agent.key is missing"), ("caller", "ann b"), ("count", "3"), ("here", "true")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        assert_eq!(kept[0], told);
        assert!(kept[1]["message"].ends_with("readable::tests: nothing beside it"), "{:?}", kept[1]);
        assert_eq!(kept[2], BTreeMap::from([("count".to_owned(), "1".to_owned())]));
    }
}
