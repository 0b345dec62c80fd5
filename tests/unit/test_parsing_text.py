"""Text in the encodings that people have: what is read is what was written."""
# ruff: noqa: RUF001 - letters of other alphabets are what these tests are about

from __future__ import annotations

import struct

import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import parse
from semantik.parsing.text import codec, decode, looks_like_text

WORDS = {
    "en": "The keys to the archive are kept in the office on the second floor, beside the window.\n"
    "Whoever takes them writes a name and the hour into the book that lies there.\n",
    "de": "Die Schlüssel zum Archiv liegen im Büro des zweiten Stocks, gleich über dem großen Schrank.\n"
    "Wer sie mitnimmt, trägt Namen und Uhrzeit in das Heft ein, das dafür ausliegt.\n",
    "fr": "Les clés des archives sont gardées au deuxième étage, près de la fenêtre du bureau.\n"
    "Celui qui les prend écrit son nom et l'heure dans le cahier posé à côté, où chacun peut le lire.\n",
    "pl": "Klucze do archiwum leżą w biurze na drugim piętrze, obok okna, gdzie są też książki.\n"
    "Kto je bierze, wpisuje nazwisko i godzinę do zeszytu, który tam leży. Proszę też zgasić światło.\n",
    "cs": "Klíče od archivu leží v kanceláři ve druhém poschodí vedle okna, kde jsou také knihy.\n"
    "Kdo si je vezme, zapíše své jméno a hodinu do sešitu. Při odchodu prosím zhasněte světlo.\n",
    "ru": "Ключи от архива лежат в кабинете на втором этаже, возле окна, рядом с книгами.\n"
    "Кто их берёт, записывает имя и время в тетрадь, которая там лежит. Уходя, гасите свет.\n",
    "el": "Τα κλειδιά του αρχείου βρίσκονται στο γραφείο του δεύτερου ορόφου, δίπλα στο παράθυρο.\n"
    "Όποιος τα παίρνει γράφει το όνομά του και την ώρα στο τετράδιο που υπάρχει εκεί.\n",
    "tr": "Arşivin anahtarları ikinci kattaki ofiste, pencerenin yanında, kitapların olduğu yerde durur.\n"
    "Onları alan kişi adını ve saati oradaki deftere yazar. Çıkarken lütfen ışığı söndürün.\n",
    "ja": "資料室の鍵は二階の事務所にある窓のそばの棚に置いてあります。\n"
    "鍵を持ち出す人は、そこにあるノートに名前と時刻を書いてください。帰るときは電気を消してください。\n",
    "zh": "档案室的钥匙放在二楼办公室的窗户旁边，和那些旧书在一起。\n"
    "谁拿走钥匙，谁就要在旁边的本子上写下自己的姓名和时间。离开的时候请关灯，谢谢大家的配合。\n",
    "tw": "檔案室的鑰匙放在二樓辦公室的窗戶旁邊，和那些舊書放在一起。\n"
    "誰拿走鑰匙，誰就要在旁邊的本子上寫下自己的姓名和時間。離開的時候請關燈，謝謝大家的配合。\n",
    "ko": "자료실 열쇠는 이층 사무실 창문 옆에 있는 책장 위에 놓여 있습니다.\n"
    "열쇠를 가져가는 사람은 그곳에 있는 공책에 이름과 시간을 적어 주십시오. 나갈 때는 불을 꺼 주세요.\n",
    "he": "המפתחות של הארכיון נמצאים במשרד שבקומה השנייה, ליד החלון.\n"
    "מי שלוקח אותם רושם את שמו ואת השעה במחברת שנמצאת שם.\n",
    "ar": "مفاتيح الأرشيف موجودة في المكتب بالطابق الثاني، بجانب النافذة.\n"
    "ومن يأخذها يكتب اسمه والوقت في الدفتر الموجود هناك.\n",
}

ENCODINGS = [
    *(("de", name) for name in ("cp1252", "iso8859-15", "cp850")),
    ("fr", "cp1252"),
    *(("pl", name) for name in ("cp1250", "iso8859-2")),
    *(("cs", name) for name in ("cp1250", "iso8859-2")),
    *(("ru", name) for name in ("cp1251", "koi8-r", "cp866", "iso8859-5")),
    *(("el", name) for name in ("cp1253", "iso8859-7")),
    ("tr", "cp1254"),
    *(("ja", name) for name in ("shift_jis", "euc_jp", "iso2022_jp")),
    *(("zh", name) for name in ("gb18030", "gb2312")),
    ("tw", "big5"),
    ("ko", "euc_kr"),
    ("he", "cp1255"),
    ("ar", "cp1256"),
]
UNICODE = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize(("language", "encoding"), ENCODINGS)
@pytest.mark.parametrize("times", [1, 30])
def test_encodings_of_a_language(language: str, encoding: str, times: int) -> None:
    words = WORDS[language] * times
    assert parse(words.encode(encoding), "a.txt")[1].text == words


@pytest.mark.parametrize("language", WORDS)
@pytest.mark.parametrize("encoding", UNICODE)
def test_unicode_with_and_without_a_mark(language: str, encoding: str) -> None:
    words = WORDS[language]
    assert parse(words.encode(encoding), "a.txt")[1].text == words


@pytest.mark.parametrize(
    ("data", "text"),
    [
        # An emoji as CESU-8 has it, in two surrogates of three bytes; and half of one.
        (b"so glad \xed\xa0\xbd\xed\xb8\x80 today", "so glad \U0001f600 today"),
        (b"half \xed\xa0\xbd of one", "half \ufffd of one"),
        (WORDS["ru"].encode()[:101] + b" \xff " + WORDS["ru"].encode()[101:], None),
        (WORDS["de"].encode() + b"\xc3", WORDS["de"] + "\ufffd"),
    ],
)
def test_damaged_utf8_is_read_as_utf8(data: bytes, text: str | None) -> None:
    read = parse(data, "a.txt")[1].text
    if text is not None:
        assert read == text
    else:
        assert read.startswith(WORDS["ru"][:50])
        assert read.endswith(WORDS["ru"][-50:])


def test_one_long_line_in_an_old_encoding() -> None:
    words = WORDS["ru"].replace("\n", " ") * 2000
    assert parse(words.encode("koi8-r"), "a.txt")[1].text == words


def test_the_first_letter_beyond_ascii_may_stand_far_behind() -> None:
    words = "plain words and nothing else\n" * 10_000 + WORDS["pl"]
    assert parse(words.encode("cp1250"), "a.txt")[1].text == words


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<5000h", *(index % 1000 for index in range(5000))),
        struct.pack("<5000i", *range(5000)),
        struct.pack("<5000f", *(index / 7 for index in range(5000))),
        struct.pack("<5000d", *(index / 7 for index in range(5000))),
    ],
    ids=["int16", "int32", "float", "double"],
)
def test_numbers_are_no_text(data: bytes) -> None:
    with pytest.raises(DocumentError, match="binary data"):
        parse(data, "a.txt")


def test_what_a_document_says_of_itself_wins() -> None:
    short = "Grüße"  # too short to guess from
    assert decode(short.encode("cp850"), "cp850") == short
    # Called by the name of the smaller encoding, as most are.
    assert decode("“朱镕基”".encode("gb18030"), "gb2312") == "“朱镕基”"
    assert decode("10 € – “so”".encode("cp1252"), "iso-8859-1") == "10 € – “so”"
    # A damaged byte does not make it untrue, nor does a mark of another encoding.
    words = WORDS["ru"]
    assert decode(words.encode("utf-8-sig"), "koi8-r") == words
    assert decode(WORDS["ja"].encode("cp932") + b"\x81", "shift_jis") == WORDS["ja"] + "\ufffd"
    assert decode(words.encode("cp1251"), "utf-8") == words
    assert decode(words.encode("cp1251"), "no-such-encoding") == words


def test_codecs_that_no_document_is_in_are_unknown() -> None:
    assert {codec(name) for name in ("idna", "punycode", "unicode_escape", "base64", "a\x00b")} == {None}
    assert decode(b"aGVsbG8gd29ybGQ=", "base64") == "aGVsbG8gd29ybGQ="


def test_an_empty_document_is_text() -> None:
    assert looks_like_text(b"")
    assert decode(b"") == ""
