//! Questions to whoever sits at the terminal.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Goes on if the answer is yes; `otherwise` is what has not happened then.
pub fn confirm(otherwise: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    let somebody = stdin.is_terminal();
    answered(somebody, stdin.lock(), &mut std::io::stderr(), otherwise)
}

fn answered(
    somebody: bool,
    mut answers: impl BufRead,
    question: &mut impl Write,
    otherwise: &str,
) -> Result<(), Failure> {
    if !somebody {
        return Err(Failure::usage("Nobody is there to answer whether to go on.").hint("--yes answers it."));
    }
    write!(question, "Go on? [y/N] ")?;
    question.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(otherwise)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn only_a_clear_yes_goes_on() {
        let answer = |text: &str| {
            let mut asked = Vec::new();
            let outcome = answered(true, text.as_bytes(), &mut asked, "Nothing was removed.");
            assert_eq!(asked, b"Go on? [y/N] ", "{text:?}");
            outcome.map_err(|failure| failure.to_string())
        };
        for yes in ["y\n", "yes\n", "Y\n", " YES \n", "y"] {
            assert_eq!(answer(yes), Ok(()), "{yes:?}");
        }
        for no in ["n\n", "no\n", "\n", "yesterday\n", "", "--yes\n"] {
            assert_eq!(answer(no), Err("error: Nothing was removed.".to_owned()), "{no:?}");
        }
    }

    #[test]
    fn where_nobody_can_answer_nobody_is_asked() {
        let mut asked = Vec::new();
        let failure = answered(false, &b"y\n"[..], &mut asked, "").unwrap_err();
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Usage, Some("--yes answers it.")));
        assert!(asked.is_empty());
    }
}
