//! The password of a cluster.

use std::fmt;
use std::hint::black_box;

/// A password that is never shown, and compared in a time that does not tell how much of a guess was right.
#[derive(Clone)]
pub struct Password(Box<[u8]>);

impl Password {
    /// The longest password: what a client that has not authenticated may send.
    pub const BYTES_MAX: usize = 16 * 1024;

    /// A password; `None` if it is empty or longer than 16 KiB.
    pub fn new(password: &str) -> Option<Self> {
        (1..=Self::BYTES_MAX).contains(&password.len()).then(|| Self(password.as_bytes().into()))
    }

    /// Whether `guess` is the password. The time taken depends on the length of the guess alone.
    pub fn matches(&self, guess: &[u8]) -> bool {
        let mut difference = u8::from(guess.len() != self.0.len());
        for (index, byte) in guess.iter().enumerate() {
            // Without this the compiler may stop at the first difference.
            difference = black_box(difference | (byte ^ self.0[index % self.0.len()]));
        }
        difference == 0
    }

    /// The password itself, for a client of this project that must present it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_matches() {
        let password = Password::new("secret").unwrap();
        assert!(password.matches(b"secret"));
        for guess in ["", "s", "secre", "secreT", "secret1", "secretsecret", "Secret"] {
            assert!(!password.matches(guess.as_bytes()), "{guess:?}");
        }
        assert!(Password::new("").is_none());
        assert!(Password::new(&"x".repeat(Password::BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn it_is_not_shown() {
        assert_eq!(format!("{:?}", Password::new("secret")), "Some(Password(…))");
    }
}
