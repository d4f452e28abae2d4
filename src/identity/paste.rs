//! Finding the one key in what a person pasted: bare, in a link, in a sentence, broken over lines.
//!
//! What could be a key is a link of a kind that holds one, or a run of letters and digits about as long as a
//! key. There must be exactly one, so that no guess is made: a text with two, or with one and something that
//! may be another with a part missing, is refused.

use super::link::percent_decode;
use super::parse::{self, KeyError};

/// A shorter run of letters and digits is a word.
const MIN_RUN: usize = 40;
/// Over how many lines a link may be broken.
const MAX_LINES: usize = 8;
/// The last part of a key on a line of its own is as long as this or has a digit: a word does not.
const MIN_REST: usize = 13;
/// The longest beginning of a link that an error repeats.
const SHOWN: usize = 16;

/// A key's bytes, and the name that its link suggests.
type Key = ([u8; 32], Option<String>);
type Found = Result<Key, KeyError>;

/// The key that `text` holds.
pub(super) fn find(text: &str) -> Found {
    let text = visible(text);
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    // One word a line: that is one link or key, broken by whatever it came through.
    let one_word_a_line = text.lines().all(|line| line.split_whitespace().count() < 2);
    if one_word_a_line && let Some(Ok(found)) = whole(text) {
        return Ok(found);
    }
    let among = among_words(text);
    if matches!(among, Some(Ok(_) | Err(KeyError::Several))) {
        return among.unwrap_or(Err(KeyError::Several));
    }
    match (whole(text), among) {
        (Some(Ok(found)), _) => Ok(found),
        // A key of the right length: the letter that is wrong parts it in two.
        (Some(Err(error @ KeyError::Character { .. })), Some(Err(KeyError::Length { .. }))) => {
            Err(error)
        }
        (_, Some(wrong)) => wrong,
        (Some(Err(error)), None) => Err(error),
        (None, None) => {
            let links = text.split_whitespace().find(|word| word.contains("://"));
            match links {
                Some(link) => Err(KeyError::Link(link.chars().take(SHOWN).collect())),
                None => parse::decode(bare(&joined(text))).map(|key| (key, None)),
            }
        }
    }
}

/// `text` without what is not seen, and without the marks that mail programs put before the lines of an
/// answer.
fn visible(text: &str) -> String {
    let seen = |c: &char| !is_invisible(*c);
    let lines = text.split(['\n', '\r']).map(|line| {
        let line: String = line.chars().filter(seen).collect();
        line.trim_start_matches(|c: char| c == '>' || c.is_whitespace()).to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Zero width characters, soft hyphens, direction marks, and controls that are no white space.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{180e}' | '\u{200c}' | '\u{200d}')
        || crate::text::is_unsafe(c) && !c.is_whitespace()
}

fn joined(text: &str) -> String {
    text.split_whitespace().collect()
}

/// A key without the quotes, brackets and full stops around it.
fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

/// Takes the whole text for one key or link with white space in it. `None` when it is not.
fn whole(text: &str) -> Option<Found> {
    let joined = joined(text);
    match joined.matches("://").count() {
        0 => {
            let key = bare(&joined);
            let is_key = matches!(key.chars().count(), parse::Z32_LENGTH | parse::HEX_LENGTH);
            is_key.then(|| parse::decode(key).map(|key| (key, None)))
        }
        1 => {
            let start = joined.find(|c: char| c.is_ascii_alphanumeric())?;
            let link = Link::at_start(joined.get(start..)?)?;
            Some(link.read())
        }
        _ => None,
    }
}

/// Looks at each word of the text. `None` when there is nothing that could be a key.
fn among_words(text: &str) -> Option<Found> {
    let mut found: Option<Found> = None;
    let mut rest = text;
    let mut add = |candidate: Found| {
        found = Some(match found.take() {
            None => candidate,
            Some(Ok((key, name))) => match candidate {
                // A link, and its key once more.
                Ok((same, other)) if same == key => Ok((key, name.or(other))),
                _ => Err(KeyError::Several),
            },
            Some(Err(_)) => Err(KeyError::Several),
        });
    };
    while !rest.is_empty() {
        let Some(colon) = rest.find("://") else {
            runs(rest).for_each(|run| add(decode_run(run)));
            break;
        };
        let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
        let (before, _) = rest.split_at(colon);
        let scheme = before.trim_end_matches(is_of_scheme).len();
        let (before, link) = rest.split_at(scheme);
        runs(before).for_each(|run| add(decode_run(run)));
        let end = link.find(ends_link).unwrap_or(link.len());
        let (word, after) = link.split_at(end);
        rest = after;
        match Link::at_start(word) {
            Some(link) if !link.key.is_empty() => {
                let read = link.read();
                match read.is_err().then(|| continued(word, after)).flatten() {
                    Some((longer, after)) => {
                        add(Ok(longer));
                        rest = after;
                    }
                    None => add(read),
                }
            }
            // Of another kind; or the key follows.
            _ => {}
        }
    }
    found
}

fn ends_link(c: char) -> bool {
    c.is_whitespace() || "<>\"'`()[]{}«»“”„‘’".contains(c)
}

/// Runs of letters and digits that are about as long as a key.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|run| run.len() >= MIN_RUN)
}

fn decode_run(run: &str) -> Found {
    // Two keys, one right after the other.
    let halves = run.split_at_checked(run.len() / 2);
    if halves.is_some_and(|(a, b)| parse::decode(a).is_ok() && parse::decode(b).is_ok()) {
        return Err(KeyError::Several);
    }
    parse::decode(run).map(|key| (key, None))
}

/// A link whose end stands on the next lines, each of which has one word. Gives what follows it, too.
fn continued<'a>(word: &str, after: &'a str) -> Option<(Key, &'a str)> {
    let mut link = word.to_owned();
    let mut rest = after;
    for _ in 0..MAX_LINES {
        rest = rest.trim_start_matches([' ', '\t']).strip_prefix('\n')?;
        let end = rest.find('\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let line = line.trim();
        let is_word = !line.is_empty() && !line.contains(char::is_whitespace);
        if !is_word || line.contains("://") {
            return None;
        }
        let key_is_whole = Link::at_start(&link).is_some_and(|link| link.key().is_ok());
        let piece = line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("");
        let is_of_key = piece.len() >= MIN_REST || piece.contains(|c: char| c.is_ascii_digit());
        if !key_is_whole && !is_of_key {
            return None;
        }
        link.push_str(line);
        rest = after;
        if let Some(Ok(found)) = Link::at_start(&link).map(|link| link.read()) {
            return Some((found, rest));
        }
    }
    None
}

/// A link that holds a key: `alex://peer/<key>?name=…`, `hyper://<key>/…`, or
/// `pear://[<fork>.<length>.]<key>[.<hash>]/…`.
struct Link<'a> {
    key: &'a str,
    query: &'a str,
}

impl<'a> Link<'a> {
    /// The link with which `text` begins.
    fn at_start(text: &'a str) -> Option<Self> {
        let after = |prefix: &str| {
            let start = text.get(..prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then(|| text.get(prefix.len()..)).flatten()
        };
        let own = after(super::link::LINK_PREFIX);
        let (rest, is_own) = match own {
            Some(rest) => (rest, true),
            None => (after("hyper://").or_else(|| after("pear://"))?, false),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let query = rest.split_once('?').map_or("", |(_, query)| query);
        if is_own {
            return Some(Self { key: bare(authority), query });
        }
        let authority = bare(authority);
        let parts: Vec<&str> = authority.split('.').collect();
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let key = match parts[..] {
            [fork, length, key] | [fork, length, key, _]
                if is_number(fork) && is_number(length) =>
            {
                key
            }
            [key, _] => key,
            _ => authority,
        };
        Some(Self { key, query: "" })
    }

    fn key(&self) -> Result<[u8; 32], KeyError> {
        parse::decode(self.key)
    }

    /// The key, and the name. Other parameters are for versions to come.
    fn read(&self) -> Found {
        let key = self.key()?;
        let name = self.query.split('&').find_map(|pair| pair.strip_prefix("name="));
        let name = match name {
            Some(name) => Some(percent_decode(name).ok_or(KeyError::LinkName)?),
            None => None,
        };
        Ok((key, name.filter(|name| !name.trim().is_empty())))
    }
}
