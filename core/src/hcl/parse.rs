//! Tokens to a [`Body`].

use super::lex::{Lexer, Tok, Token};
use super::{Body, HclError, Item, Kind, MAX_DEPTH, MAX_INPUT, Value};

/// Reads `text` as HCL 1, or as its JSON form when the first character that is not blank is `{`.
///
/// # Errors
/// [`HclError`] with the place of the first mistake; also for input over [`MAX_INPUT`] bytes and nesting
/// over [`MAX_DEPTH`].
pub fn parse(text: &str) -> Result<Body, HclError> {
    if text.len() > MAX_INPUT {
        let message = format!("the file has {} bytes, the limit is {MAX_INPUT}", text.len());
        return Err(HclError { line: 1, column: 1, message });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let json = text.trim_start().starts_with('{');
    let mut lexer = Lexer::new(text, json);
    let next = lexer.next_token()?;
    let mut parser = Parser { lexer, next, json };
    if json {
        parser.advance()?;
    }
    let body = parser.body(0, json)?;
    parser.expect_end()?;
    Ok(body)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    next: Token,
    json: bool,
}

impl Parser<'_> {
    fn advance(&mut self) -> Result<Token, HclError> {
        let next = self.lexer.next_token()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    fn error(&self, expected: &str) -> HclError {
        HclError {
            line: self.next.line,
            column: self.next.column,
            message: format!("expected {expected}, found {}", self.next.kind.name()),
        }
    }

    fn expect_end(&self) -> Result<(), HclError> {
        match self.next.kind {
            Tok::End => Ok(()),
            _ => Err(self.error("a key or the end of the file")),
        }
    }

    fn check_depth(&self, depth: usize) -> Result<(), HclError> {
        if depth <= MAX_DEPTH {
            return Ok(());
        }
        let message = format!("nested deeper than {MAX_DEPTH} levels");
        Err(HclError { line: self.next.line, column: self.next.column, message })
    }

    /// Items up to the closing brace (taken) or the end of the file.
    fn body(&mut self, depth: usize, braced: bool) -> Result<Body, HclError> {
        self.check_depth(depth)?;
        let mut items = Vec::new();
        loop {
            match self.next.kind {
                Tok::RBrace if braced => {
                    self.advance()?;
                    return Ok(Body { items });
                }
                Tok::End if !braced => return Ok(Body { items }),
                _ => items.extend(self.item(depth)?),
            }
            // Commas between items are optional in HCL 1 and required, but never last, in JSON.
            let comma = self.next.kind == Tok::Comma;
            if comma {
                self.advance()?;
            }
            if self.json && comma == (self.next.kind == Tok::RBrace) {
                return Err(self.error(if comma { "a key after `,`" } else { "`,` or `}`" }));
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Option<Item>, HclError> {
        let line = self.next.line;
        let mut keys = self.keys(depth)?;
        let key = keys.remove(0);
        let value = match self.next.kind {
            Tok::Assign if !keys.is_empty() => return Err(self.error("`{` after a key with labels")),
            Tok::Assign => {
                self.advance()?;
                if self.json && self.next.kind == Tok::Null {
                    self.advance()?;
                    return Ok(None);
                }
                self.value(depth)?
            }
            Tok::LBrace if !self.json => self.value(depth)?,
            _ => return Err(self.error("`=` or `{` after the key")),
        };
        Ok(Some(Item { key, labels: keys, value, line }))
    }

    /// At least one key.
    fn keys(&mut self, depth: usize) -> Result<Vec<String>, HclError> {
        let mut keys = Vec::new();
        loop {
            match &self.next.kind {
                Tok::Str(key) => keys.push(key.clone()),
                Tok::Ident(key) if !self.json => keys.push(key.clone()),
                _ if keys.is_empty() => return Err(self.error("a key")),
                _ => return Ok(keys),
            }
            // Labels become nesting later, so they count as depth here.
            self.check_depth(depth + keys.len())?;
            self.advance()?;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, HclError> {
        let line = self.next.line;
        let kind = match &self.next.kind {
            Tok::Str(text) => Kind::String(text.clone()),
            Tok::Int(value) => Kind::Int(*value),
            Tok::Float(value) => Kind::Float(*value),
            Tok::Bool(value) => Kind::Bool(*value),
            Tok::Null => Kind::String(String::new()),
            Tok::LBrace => {
                self.advance()?;
                return Ok(Value { line, kind: Kind::Object(self.body(depth + 1, true)?) });
            }
            Tok::LBracket => {
                self.advance()?;
                return Ok(Value { line, kind: Kind::List(self.list(depth + 1)?) });
            }
            _ => return Err(self.error("a value (strings need quotes)")),
        };
        self.advance()?;
        Ok(Value { line, kind })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, HclError> {
        self.check_depth(depth)?;
        let mut values = Vec::new();
        loop {
            if self.next.kind == Tok::RBracket {
                self.advance()?;
                return Ok(values);
            }
            values.push(self.value(depth)?);
            match self.next.kind {
                Tok::Comma => {
                    self.advance()?;
                }
                Tok::RBracket => {}
                _ => return Err(self.error("`,` or `]`")),
            }
        }
    }
}
