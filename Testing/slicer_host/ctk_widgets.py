"""Stand-ins for the CTK widgets a module panel uses: CTK's names, properties, signals and habits."""

from typing import Any

from PySide6.QtCore import Property, QEvent, QRect, Qt, Signal
from PySide6.QtGui import QIcon, QPainter
from PySide6.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QComboBox,
    QGroupBox,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QStyle,
    QStyleOptionButton,
    QStyleOptionComboBox,
    QStylePainter,
    QTextBrowser,
    QWidget,
)

from .ctk_inputs import ctkDoubleSpinBox, ctkPathLineEdit, ctkSliderWidget
from .stored import stored

OWN = "visibilityToParent"  # property of what lies in a collapsible section: whether it is shown when the section is open


class ctkCollapsibleButton(QAbstractButton):
    """Hides its contents while it is collapsed; what is shown or hidden meanwhile is remembered for when it opens.

    Before it was on the screen it hides nothing.
    """

    _exposed = True
    contentsCollapsed = Signal(bool)
    collapsedHeight = stored(int, "collapsedHeight", 14, "updateGeometry")
    flat = stored(bool, "flat", False)
    contentsFrameShape = stored(int, "contentsFrameShape", 0)
    contentsLineWidth = stored(int, "contentsLineWidth", 1)

    def __init__(self, parent: QWidget | str | None = None) -> None:
        super().__init__(parent if isinstance(parent, QWidget) else None)
        self.setText(parent if isinstance(parent, str) else "")
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header(), 0, 0)
        self._forcing = self._made = False
        self.toggled.connect(lambda on: self._collapse(not on))

    def _header(self) -> int:
        return self.fontMetrics().height() + 10

    def _collapse(self, collapsed: bool) -> None:
        self.setMaximumHeight(self._header() + self.collapsedHeight if collapsed else 16777215)
        self.updateGeometry()
        self._force()
        self.contentsCollapsed.emit(collapsed)

    def _force(self) -> None:
        """Hide the contents, or show those that are not hidden on their own account."""
        if not self.testAttribute(Qt.WidgetAttribute.WA_WState_Created):
            return
        self._forcing = True
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            if child.property(OWN) is None:
                hidden = child.isHidden() and child.testAttribute(Qt.WidgetAttribute.WA_WState_ExplicitShowHide)
                child.setProperty(OWN, not hidden)
                child.installEventFilter(self)
            child.setVisible(self.isChecked() and child.property(OWN))
            if child.property(OWN):
                child.setAttribute(Qt.WidgetAttribute.WA_WState_ExplicitShowHide, False)
        self._forcing = False

    def setVisible(self, visible: bool) -> None:
        was, self._forcing = self._forcing, True
        super().setVisible(visible)
        self._forcing = was
        if not self._made and self.testAttribute(Qt.WidgetAttribute.WA_WState_Created):
            self._made = True
            self._force()

    def childEvent(self, event: Any) -> None:
        super().childEvent(event)
        if event.polished():
            self._force()

    def eventFilter(self, child: Any, event: Any) -> bool:
        if not self._forcing and event.type() in (QEvent.Type.ShowToParent, QEvent.Type.HideToParent):
            child.setProperty(OWN, event.type() == QEvent.Type.ShowToParent)
            self._force()
        return False

    def _collapsed(self) -> bool:
        return not self.isChecked()

    def setCollapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = Property(bool, _collapsed, setCollapsed)

    def sizeHint(self) -> Any:
        hint = self.layout().sizeHint() if self.layout() and self.isChecked() else super().sizeHint()
        width = max(hint.width(), self.fontMetrics().horizontalAdvance(self.text()) + 40)
        hint.setWidth(width)
        hint.setHeight(max(hint.height(), self._header()) if self.isChecked() else self._header() + self.collapsedHeight)
        return hint

    def paintEvent(self, event: Any) -> None:
        painter, option = QPainter(self), QStyleOptionButton()
        option.initFrom(self)
        option.rect = QRect(0, 0, self.width(), self._header() - 4)
        option.state |= QStyle.StateFlag.State_Raised
        self.style().drawControl(QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        arrow = QStyle.PrimitiveElement.PE_IndicatorArrowDown if self.isChecked() else QStyle.PrimitiveElement.PE_IndicatorArrowRight
        text = option.rect.adjusted(24, 0, -4, 0)
        option.rect = QRect(8, option.rect.height() // 2 - 5, 10, 10)
        self.style().drawPrimitive(arrow, option, painter, self)
        painter.drawText(text, int(Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft), self.text())
        painter.end()


class ctkCollapsibleGroupBox(QGroupBox):
    _exposed = True
    collapsedHeight = stored(int, "collapsedHeight", 14)

    def __init__(self, parent: QWidget | str | None = None) -> None:
        super().__init__(parent if isinstance(parent, QWidget) else None)
        self.setTitle(parent if isinstance(parent, str) else "")
        self.setCheckable(True)
        self.toggled.connect(self._expand)

    def _expand(self, on: bool) -> None:
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(on)

    def _collapsed(self) -> bool:
        return not self.isChecked()

    def setCollapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = Property(bool, _collapsed, setCollapsed)


class ctkDirectoryButton(QPushButton):
    _exposed = True
    directoryChanged = Signal(str)
    directorySelected = Signal(str)
    caption = stored(str, "caption", "")

    def _directory(self) -> str:
        return self.__dict__.get("_path", ".")

    def setDirectory(self, path: str) -> None:
        if path != self._directory():
            self._path = path
            self.setText(path)
            self.directoryChanged.emit(path)

    directory = Property(str, _directory, setDirectory)


class ctkComboBox(QComboBox):
    _exposed = True
    defaultText = stored(str, "defaultText", "", "update")
    forceDefault = stored(bool, "forceDefault", False, "update")
    elideMode = stored(int, "elideMode", int(Qt.TextElideMode.ElideNone.value), "update")

    def paintEvent(self, event: Any) -> None:
        """As QComboBox paints itself, the text cut where `elideMode` says instead of clipped."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        if self.forceDefault or self.currentIndex() < 0:
            option.currentText = self.defaultText
        field = self.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self)
        mode = Qt.TextElideMode(self.elideMode)
        if mode != Qt.TextElideMode.ElideNone:
            option.currentText = self.fontMetrics().elidedText(option.currentText, mode, field.width() - 4)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)
        painter.end()


class ctkCheckBox(QCheckBox):
    _exposed = True
    indicatorIcon = stored(QIcon, "indicatorIcon", QIcon())


class ctkCheckablePushButton(QPushButton):
    _exposed = True
    checkBoxControlsButton = stored(bool, "checkBoxControlsButton", True)
    checkBoxControlsButtonToggleState = stored(bool, "checkBoxControlsButtonToggleState", True)


class ctkMessageBox(QMessageBox):
    _exposed = True
    dontShowAgain = stored(bool, "dontShowAgain", False)
    dontShowAgainVisible = stored(bool, "dontShowAgainVisible", False)
    dontShowAgainSettingsKey = stored(str, "dontShowAgainSettingsKey", "")


class ctkFittedTextBrowser(QTextBrowser):
    _exposed = True
    collapsed = stored(bool, "collapsed", False)


class ctkDynamicSpacer(QWidget):
    _exposed = True


class ctkExpandableWidget(QWidget):
    _exposed = True


class ctkWidgetsUtils:
    """Static helpers."""

    @staticmethod
    def grabWidget(widget: Any) -> Any:
        return widget.grab().toImage()


WIDGETS = (
    ctkCheckBox,
    ctkCheckablePushButton,
    ctkCollapsibleButton,
    ctkCollapsibleGroupBox,
    ctkComboBox,
    ctkDirectoryButton,
    ctkDoubleSpinBox,
    ctkDynamicSpacer,
    ctkExpandableWidget,
    ctkFittedTextBrowser,
    ctkMessageBox,
    ctkPathLineEdit,
    ctkSliderWidget,
)
