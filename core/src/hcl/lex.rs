//! Characters to tokens, for native HCL 1 and for its JSON form.

use super::HclError;

/// One token with the place it starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub kind: Tok,
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tok {
    Ident(String),
    Str(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Null,
    LBrace,
    RBrace,
    LBracket,
    RBracket,
    Comma,
    Assign,
    End,
}

impl Tok {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Ident(name) => format!("`{name}`"),
            Self::Str(_) => "a string".into(),
            Self::Int(_) | Self::Float(_) => "a number".into(),
            Self::Bool(_) => "a boolean".into(),
            Self::Null => "null".into(),
            Self::LBrace => "`{`".into(),
            Self::RBrace => "`}`".into(),
            Self::LBracket => "`[`".into(),
            Self::RBracket => "`]`".into(),
            Self::Comma => "`,`".into(),
            Self::Assign => "`=`".into(),
            Self::End => "the end of the file".into(),
        }
    }
}

pub(super) struct Lexer<'a> {
    rest: std::str::Chars<'a>,
    line: u32,
    column: u32,
    json: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, json: bool) -> Self {
        Self { rest: text.chars(), line: 1, column: 1, json }
    }

    pub(super) fn next_token(&mut self) -> Result<Token, HclError> {
        self.skip_blank()?;
        let (line, column) = (self.line, self.column);
        let kind = self.token()?;
        Ok(Token { kind, line, column })
    }

    fn token(&mut self) -> Result<Tok, HclError> {
        let Some(first) = self.peek() else { return Ok(Tok::End) };
        let single = match first {
            '{' => Some(Tok::LBrace),
            '}' => Some(Tok::RBrace),
            '[' => Some(Tok::LBracket),
            ']' => Some(Tok::RBracket),
            ',' => Some(Tok::Comma),
            '=' if !self.json => Some(Tok::Assign),
            ':' if self.json => Some(Tok::Assign),
            _ => None,
        };
        if let Some(token) = single {
            self.bump();
            return Ok(token);
        }
        match first {
            '"' => self.string(),
            '<' if !self.json => self.heredoc(),
            '-' | '0'..='9' => self.number(),
            first if is_letter(first) => Ok(self.word()),
            other => Err(self.error(format!("unexpected character {other:?}"))),
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(next)
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(next) = self.peek().filter(|&c| keep(c)) {
            taken.push(next);
            self.bump();
        }
        taken
    }

    fn error(&self, message: impl Into<String>) -> HclError {
        HclError { line: self.line, column: self.column, message: message.into() }
    }

    fn skip_blank(&mut self) -> Result<(), HclError> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let text = self.rest.as_str();
            if self.json {
                return Ok(());
            }
            if text.starts_with('#') || text.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if text.starts_with("/*") {
                self.block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), HclError> {
        let unterminated = self.error("comment not terminated");
        self.bump();
        self.bump();
        loop {
            if self.rest.as_str().starts_with("*/") {
                self.bump();
                self.bump();
                return Ok(());
            }
            if self.bump().is_none() {
                return Err(unterminated);
            }
        }
    }

    fn word(&mut self) -> Tok {
        let word = self.take_while(|c| is_letter(c) || c.is_numeric() || c == '-' || c == '.');
        match word.as_str() {
            "true" => Tok::Bool(true),
            "false" => Tok::Bool(false),
            "null" if self.json => Tok::Null,
            _ => Tok::Ident(word),
        }
    }

    /// `-` digits, `0x` digits, `0` octal digits, or a fraction. Source: HCL 1 takes the base from the prefix.
    fn number(&mut self) -> Result<Tok, HclError> {
        let at = self.error("");
        let bad = |text: &str, why: &str| HclError { message: format!("{why}: `{text}`"), ..at.clone() };
        let mut text = String::new();
        if self.peek() == Some('-') {
            text.push('-');
            self.bump();
        }
        let mut last = ' ';
        while let Some(next) = self.peek() {
            let sign_of_exponent = matches!(next, '+' | '-') && matches!(last, 'e' | 'E') && !is_hex(&text);
            if !(next.is_ascii_alphanumeric() || next == '.' || sign_of_exponent) {
                break;
            }
            text.push(next);
            last = next;
            self.bump();
        }
        let digits = text.trim_start_matches('-');
        if is_hex(&text) {
            let value =
                i64::from_str_radix(&digits[2..], 16).map_err(|_| bad(&text, "bad hexadecimal number"))?;
            return Ok(Tok::Int(if text.starts_with('-') { -value } else { value }));
        }
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(bad(&text, "a number was expected after `-`"));
        }
        if digits.contains(['.', 'e', 'E']) {
            let value: f64 = text.parse().map_err(|_| bad(&text, "bad number"))?;
            return Ok(Tok::Float(value));
        }
        if !self.json && digits.len() > 1 && digits.starts_with('0') {
            let value = i64::from_str_radix(digits, 8).map_err(|_| bad(&text, "bad octal number"))?;
            return Ok(Tok::Int(if text.starts_with('-') { -value } else { value }));
        }
        text.parse().map(Tok::Int).map_err(|_| bad(&text, "bad number"))
    }

    /// A quoted string. Between `${` and its `}` everything is kept as it stands, quotes and newlines too.
    fn string(&mut self) -> Result<Tok, HclError> {
        let unterminated = self.error("string not terminated");
        self.bump();
        let mut value = String::new();
        let mut braces = 0u32;
        loop {
            let Some(next) = self.peek() else { return Err(unterminated) };
            if braces == 0 && next == '"' {
                self.bump();
                return Ok(Tok::Str(value));
            }
            if braces == 0 && next == '\n' {
                return Err(unterminated);
            }
            if braces == 0 && next == '\\' {
                value.push(self.escape()?);
                continue;
            }
            self.bump();
            value.push(next);
            match next {
                '{' if braces > 0 || (!self.json && value.ends_with("${")) => braces += 1,
                '}' if braces > 0 => braces -= 1,
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<char, HclError> {
        let bad = self.error("unknown escape in a string");
        self.bump();
        let kind = self.bump().ok_or_else(|| bad.clone())?;
        let value = match kind {
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            '"' | '\\' => Some(kind),
            '/' if self.json => Some('/'),
            'u' if self.json => self.json_unicode(),
            'a' if !self.json => Some('\u{7}'),
            'v' if !self.json => Some('\u{b}'),
            'u' => self.code(4, 16, 0).and_then(char::from_u32),
            'U' => self.code(8, 16, 0).and_then(char::from_u32),
            'x' if !self.json => self.code(2, 16, 0).and_then(char::from_u32),
            '0'..='7' if !self.json => self
                .code(2, 8, u32::from(kind) - u32::from('0'))
                .filter(|&c| c < 256)
                .and_then(char::from_u32),
            _ => None,
        };
        value.ok_or(bad)
    }

    fn json_unicode(&mut self) -> Option<char> {
        let high = self.code(4, 16, 0)?;
        if !(0xD800..0xDC00).contains(&high) {
            return char::from_u32(high);
        }
        if self.bump()? != '\\' || self.bump()? != 'u' {
            return None;
        }
        let low = self.code(4, 16, 0)?.checked_sub(0xDC00).filter(|&low| low < 0x400)?;
        char::from_u32(0x10000 + ((high - 0xD800) << 10) + low)
    }

    fn code(&mut self, digits: usize, radix: u32, start: u32) -> Option<u32> {
        let mut value = start;
        for _ in 0..digits {
            let digit = self.peek()?.to_digit(radix)?;
            self.bump();
            value = value.checked_mul(radix)?.checked_add(digit)?;
        }
        Some(value)
    }

    /// `<<EOF` keeps the lines as they are, `<<-EOF` takes away the indentation of the closing line where
    /// every line has it.
    fn heredoc(&mut self) -> Result<Tok, HclError> {
        let start = self.error("heredoc not terminated");
        let wrong = |message: &str| HclError { message: message.into(), ..start.clone() };
        self.bump();
        if self.bump() != Some('<') {
            return Err(wrong("heredoc expected second `<`"));
        }
        let indented = self.peek() == Some('-');
        if indented {
            self.bump();
        }
        let anchor = self.take_while(|c| is_letter(c) || c.is_numeric());
        self.take_while(|c| c == '\r');
        if anchor.is_empty() {
            return Err(wrong("a heredoc needs a name after `<<`"));
        }
        if self.bump() != Some('\n') {
            return Err(wrong("only the name may stand on the first line of a heredoc"));
        }
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = self.take_while(|c| c != '\n');
            let unindented = line.trim_start();
            if unindented.trim_end_matches('\r') == anchor {
                let indent = &line[..line.len() - unindented.len()];
                return Ok(Tok::Str(join_heredoc(&lines, indent, indented)));
            }
            if self.bump().is_none() {
                return Err(start);
            }
            lines.push(line);
        }
    }
}

fn join_heredoc(lines: &[String], indent: &str, indented: bool) -> String {
    let strip = indented && lines.iter().all(|line| line.starts_with(indent));
    let mut text = String::new();
    for line in lines {
        text.push_str(if strip { &line[indent.len()..] } else { line });
        text.push('\n');
    }
    text
}

fn is_hex(text: &str) -> bool {
    let digits = text.trim_start_matches('-');
    digits.starts_with("0x") || digits.starts_with("0X")
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}
