"""Ordinary text in the languages whose encodings are to be told apart, written for the tests."""

# ruff: noqa: E501

TEXTS = {
    "zh-Hans": "图书馆每天上午九点开门，晚上八点关门，周一休息。读者可以凭借书证一次借五本书，借期为三十天；"
    "如果没有人预约，还可以续借一次。逾期的图书每天收取一角钱。请不要在书上写字，也不要把食物带进阅览室。"
    "二楼是儿童区，家长可以陪孩子一起读故事。我们在每月的第一个星期六举办讲座，欢迎大家参加。",
    "zh-Hant": "圖書館每天上午九點開門，晚上八點關門，週一休息。讀者可以憑借書證一次借五本書，借期為三十天；"
    "如果沒有人預約，還可以續借一次。逾期的圖書每天收取一角錢。請不要在書上寫字，也不要把食物帶進閱覽室。"
    "二樓是兒童區，家長可以陪孩子一起讀故事。我們在每月的第一個星期六舉辦講座，歡迎大家參加。",
    "ja": "図書館は毎日午前九時に開き、午後八時に閉まります。月曜日はお休みです。貸出カードがあれば、"
    "一度に五冊まで三十日間借りることができます。予約がない場合は、もう一度だけ延長できます。"
    "本に書き込みをしないでください。また、閲覧室に食べ物を持ち込まないようお願いします。"
    "二階は子どものコーナーで、家族といっしょに物語を読むことができます。",
    "ko": "도서관은 매일 아침 아홉 시에 열고 저녁 여덟 시에 닫으며 월요일에는 쉽니다. 대출증이 있으면 "
    "한 번에 다섯 권까지 삼십 일 동안 빌릴 수 있습니다. 예약이 없으면 한 번 더 연장할 수 있습니다. "
    "책에 글씨를 쓰지 말고 열람실에 음식을 가져오지 마십시오. 이층은 어린이 자리이며 부모님과 함께 "
    "이야기를 읽을 수 있습니다.",
    "ru": "Библиотека открывается каждый день в девять часов утра и закрывается в восемь вечера, а в "
    "понедельник у неё выходной. По читательскому билету можно взять сразу пять книг на тридцать дней. "
    "Если книгу никто не заказал, срок можно продлить ещё один раз. Пожалуйста, не пишите в книгах и "
    "не приносите еду в читальный зал. На втором этаже дети вместе с родителями читают сказки.",
    "uk": "Бібліотека відчиняється щодня о дев'ятій ранку й зачиняється о восьмій вечора, а понеділок є "
    "вихідним. За читацьким квитком можна взяти одразу п'ять книжок на тридцять днів. Якщо книжку ніхто "
    "не замовив, термін можна подовжити ще раз. Будь ласка, не пишіть у книжках і не приносьте їжу.",
    "de": "Die Bücherei öffnet täglich um neun Uhr und schließt abends um acht; montags hat sie "
    "geschlossen. Mit einem Ausweis können Sie bis zu fünf Bücher für dreißig Tage ausleihen und die "
    "Frist einmal verlängern, falls niemand sie vorgemerkt hat. Für verspätete Rückgaben fällt eine "
    "kleine Gebühr an. Bitte schreiben Sie nicht in die Bücher und bringen Sie kein Frühstück mit.",
    "fr": "La bibliothèque ouvre chaque jour à neuf heures et ferme à vingt heures ; elle est fermée le "
    "lundi. Avec une carte, vous pouvez emprunter jusqu'à cinq livres pour trente jours et prolonger le "
    "prêt une fois si personne ne les a réservés. Des pénalités sont prévues après l'échéance. Les élèves "
    "et leurs parents sont invités à écouter des contes au deuxième étage, où règne le silence.",
    "es": "La biblioteca abre todos los días a las nueve de la mañana y cierra a las ocho; el lunes no "
    "abre. Con el carné se pueden sacar hasta cinco libros durante treinta días y también prolongar el "
    "préstamo una vez más si nadie los pidió. ¿Quién quiere leer cuentos? Los niños pequeños están en el "
    "segundo piso con sus papás. Por favor, ningún lector escribirá en los libros jamás.",
    "pl": "Biblioteka jest otwarta codziennie od dziewiątej rano do ósmej wieczorem, a w poniedziałki jest "
    "zamknięta. Na kartę można wypożyczyć pięć książek na trzydzieści dni i przedłużyć termin jeszcze "
    "raz, jeśli nikt ich nie zamówił. Proszę nie pisać po książkach i nie wnosić żywności. Na piętrze "
    "dzieci słuchają bajek, które czytają im rodzice. Każdy może przyjść, również ów gość źle ubrany.",
}

ENCODINGS = {
    "zh-Hans": ["gb18030", "utf-16-le", "utf-16-be"],
    "zh-Hant": ["big5", "big5hkscs", "gb18030", "utf-16-le"],
    "ja": ["cp932", "euc_jp", "iso2022_jp", "utf-16-le"],
    "ko": ["cp949", "utf-16-le"],
    "ru": ["cp1251", "koi8-r", "cp866", "iso8859-5", "utf-16-le"],
    "uk": ["cp1251", "koi8-u"],
    "de": ["cp1252", "utf-16-le"],
    "fr": ["cp1252"],
    "es": ["cp1252"],
    "pl": ["cp1250", "iso8859-2"],
}
CASES = [(language, encoding) for language, found in ENCODINGS.items() for encoding in found]
