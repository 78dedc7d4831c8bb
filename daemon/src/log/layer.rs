//! From tracing events to log lines.

use std::error::Error;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use jiff::Zoned;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::format::Line;
use super::{LogFormat, LogLevel, LogOutput};

/// Longest value in bytes. Callers' words go into lines: without an end they would fill the disk.
const MAX_VALUE_BYTES: usize = 32 * 1024;

/// Prints every enabled event; see the module.
pub struct LogrusLayer {
    level: Arc<AtomicU8>,
    output: Arc<LogOutput>,
    format: LogFormat,
    source_location: bool,
}

/// Fields of a span, kept in its extensions.
struct SpanFields(Fields);

#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, Value)>,
}

impl LogrusLayer {
    pub(super) fn new(
        level: Arc<AtomicU8>,
        output: Arc<LogOutput>,
        format: LogFormat,
        source_location: bool,
    ) -> Self {
        Self { level, output, format, source_location }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let limit = self.level.load(Ordering::Relaxed);
        let level = *metadata.level();
        if level_of(level) as u8 > limit {
            return false;
        }
        let target = metadata.target();
        // These tell at trace what they sign, session tokens included.
        let tells_secrets = target.starts_with("aws_");
        target.starts_with("svid")
            || level <= Level::WARN
            || (limit == LogLevel::Trace as u8 && !tells_secrets)
    }
}

fn level_of(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogrusLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // A change of the level rebuilds this cache.
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let limit = self.level.load(Ordering::Relaxed);
        Some(match limit {
            0 | 1 => LevelFilter::OFF,
            2 => LevelFilter::ERROR,
            3 => LevelFilter::WARN,
            4 => LevelFilter::INFO,
            5 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        // Outermost first, so that the innermost value of a name stays.
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(SpanFields(outer)) = span.extensions().get() {
                outer.named.iter().for_each(|(name, value)| fields.set(name, value.clone()));
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let place =
            || format!("{}:{}", metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        let line = Line {
            time: Zoned::now(),
            level: level_of(*metadata.level()),
            message: &fields.message,
            source: self.source_location.then(|| (metadata.target().to_owned(), place())),
            fields: fields.named,
        };
        self.output.write_line(&line.render(self.format));
    }
}

impl Fields {
    fn set(&mut self, name: &'static str, value: Value) {
        if name == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            return;
        }
        match self.named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => *slot = value,
            None => self.named.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field.name(), bounded(format!("{value:?}")).into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), bounded(value.to_owned()).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.set(field.name(), value.to_string().into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field.name(), value.to_string().into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field.name(), bounded(chain(value)).into());
    }
}

/// Cuts what is too long, and says so.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_VALUE_BYTES {
        let length = text.len();
        text.truncate(text.floor_char_boundary(MAX_VALUE_BYTES));
        // Writing to a String cannot fail.
        let _ = write!(text, "... ({length} bytes)");
    }
    text
}

/// An error and its causes, joined with `: ` as Go's wrapped errors read.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some errors of others, and transparent ones of ours, have said it already.
        if !text.ends_with(&said) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}
