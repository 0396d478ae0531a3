"""What arrives at the desk and is neither a digit nor a message in English: it goes to a person, with the reason.

Sentences in other languages, written for this demo, and files of kinds that no route takes, made here. What a person
should answer is the name of the language or of the kind.
"""

from __future__ import annotations

import gzip
import io
import wave
import zipfile
from collections.abc import Iterator, Mapping, Sequence

from gateway.demo.items import Item

INTAKE = "intake"
"""The route of the people at the desk."""

_SENTENCES: Mapping[str, Sequence[str]] = {
    "German": (
        "Guten Tag, das Gerät ist nach zwei Tagen kaputtgegangen und ich möchte mein Geld zurück.",
        "Vielen Dank für die schnelle Lieferung, ich bin mit der Kamera sehr zufrieden.",
    ),
    "French": (
        "Bonjour, la commande est arrivée avec une semaine de retard et l'emballage était abîmé.",
        "Je suis très contente de cet appareil, la batterie tient toute la journée.",
    ),
    "Spanish": (
        "Buenos días, el teléfono dejó de funcionar después de la primera semana y nadie me contesta.",
        "Me encanta este producto, lo recomiendo a todos mis amigos y a mi familia.",
    ),
    "Italian": (
        "Buongiorno, lo schermo è arrivato rotto e vorrei sapere come posso restituirlo.",
        "Sono molto soddisfatto dell'acquisto, la qualità delle foto è davvero ottima.",
    ),
    "Portuguese": (
        "Bom dia, o aparelho não liga desde ontem e a loja não responde às minhas mensagens.",
        "Gostei muito do atendimento, resolveram o meu problema em poucos minutos.",
    ),
    "Dutch": (
        "Goedemorgen, de oplader werkt niet meer en ik wil graag weten hoe ik hem kan ruilen.",
        "Ik ben erg blij met deze camera, de foto's zijn scherp en de bediening is eenvoudig.",
    ),
    "Polish": (
        "Dzień dobry, telefon przestał działać po dwóch dniach i chciałbym otrzymać zwrot pieniędzy.",
        "Bardzo dziękuję za szybką pomoc, wszystko działa teraz bez żadnych problemów.",
    ),
    "Swedish": (
        "Hej, paketet kom fram i går men skärmen var sprucken och jag vill gärna byta den.",
        "Jag är mycket nöjd med köpet och skulle gärna handla här igen nästa gång.",
    ),
    "Turkish": (
        "Merhaba, ürün iki gün sonra bozuldu ve paramı geri almak istiyorum, lütfen yardım edin.",
        "Hızlı teslimat için çok teşekkür ederim, kameranın kalitesinden çok memnunum.",
    ),
    "Russian": (
        "Здравствуйте, телефон сломался через два дня, и я хотел бы вернуть деньги.",
        "Большое спасибо за быструю доставку, я очень доволен этой камерой.",
    ),
    "Greek": (
        "Καλημέρα, η συσκευή χάλασε μετά από δύο μέρες και θέλω να την επιστρέψω.",
        "Ευχαριστώ πολύ για τη γρήγορη εξυπηρέτηση, είμαι πολύ ευχαριστημένος.",
    ),
    "Japanese": (
        "こんにちは。届いた商品が二日で壊れてしまいました。返金をお願いします。",
        "配送がとても早くて助かりました。カメラの画質にも大変満足しています。",
    ),
}


def odd_mail() -> Iterator[Item]:
    """Everything of this kind, in a fixed order: texts in other languages, then files that no route takes."""
    for language, sentences in _SENTENCES.items():
        for sentence in sentences:
            yield Item(INTAKE, "text/plain", sentence.encode(), language)
    for kind, content in (("a ZIP archive", _zip()), ("a gzip archive", _gzip()), ("a sound", _sound())):
        yield Item(INTAKE, "application/octet-stream", content, kind)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(zipfile.ZipInfo(f"reports/{number}.txt"), f"report {number}\n" * 200)
    return buffer.getvalue()


def _gzip() -> bytes:
    return gzip.compress("\n".join(f"line {number}" for number in range(500)).encode(), mtime=0)


def _sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"".join(((n * 37 % 2000) - 1000).to_bytes(2, "little", signed=True) for n in range(8000)))
    return buffer.getvalue()
