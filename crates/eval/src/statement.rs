//! Words by which answers are stated.

/// "Answer" in many languages: those of simple-evals' multilingual MMLU, and some more. The text is part of a regular
/// expression.
pub(crate) const ANSWER: &str = concat!(
    r"(?:\b(?:answers?|antwort|respuesta|risposta|jawaban|réponse|resposta|jibu|idahun|ìdáhùn|idáhùn|àmọ̀nà|àdáhùn",
    r"|ànúgọ|àṣàyàn|ответ|відповідь|antwoord|svar|cevap|yanıt|odpowiedź|đáp án)\b",
    r"|উত্তর|उत्तर|답변|정답|답|答案|答え|答复|答曰|答|الإجابة|الجواب|إجابة|回答|解答|คำตอบ)",
);
/// A colon of any script, or an equals sign.
pub(crate) const COLON: &str = "[:：﹕∶꞉ঃः؛=]";
