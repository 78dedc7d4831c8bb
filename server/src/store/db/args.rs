//! Arguments of statements.

/// An argument, borrowed until the statement was sent.
#[derive(Clone, Copy)]
pub(in super::super) enum Value<'a> {
    Int(i64),
    Bool(bool),
    Text(&'a str),
    /// Text that may be absent.
    Maybe(Option<&'a str>),
    Bytes(&'a [u8]),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Maybe(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(value: &'a Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(value: &'a [u8; N]) -> Self {
        Self::Bytes(value)
    }
}

/// The arguments of a statement: `args![name, 3, &text]` for `$1`, `$2` and `$3`.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::db::Value::from($value)),*] };
}
pub(in super::super) use args;

/// Binds each argument as the type it has, in a macro because the drivers' types have no common trait.
macro_rules! bind {
    ($query:expr, $args:expr) => {{
        let mut query = $query;
        for arg in $args {
            query = match *arg {
                $crate::store::db::Value::Int(value) => query.bind(value),
                $crate::store::db::Value::Bool(value) => query.bind(value),
                $crate::store::db::Value::Text(value) => query.bind(value),
                $crate::store::db::Value::Maybe(value) => query.bind(value),
                $crate::store::db::Value::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}
pub(super) use bind;
